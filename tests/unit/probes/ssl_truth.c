/* A handshake inside a process that has some OpenSSL or BoringSSL, and what its accessors say of both ends.
 *
 * Preloaded into any program: it runs before main and ends the process. The functions are looked up by name; those that
 * the dynamic linker does not see are given as NAME=ADDRESS in $FUNCTIONS, relative to the object $OBJECT. $FIELDS has
 * lines "name derefs,... offset size", as placement says; for each end and field a line "end name hex" is printed for
 * what lies there, and "end name= hex" for what the accessor returns. Key and certificate: $PEM. $MAX_VERSION limits.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static uintptr_t base;

static int find_base(struct dl_phdr_info *info, size_t size, void *object)
{
    const char *name = info->dlpi_name[0] ? info->dlpi_name : "main";
    (void)size;
    if (strcmp(name, object) == 0)
        base = info->dlpi_addr;
    return 0;
}

static void *find(const char *name)
{
    void *found = dlsym(RTLD_DEFAULT, name);
    char wanted[80];
    const char *at;

    if (found)
        return found;
    snprintf(wanted, sizeof wanted, " %s=", name);
    at = strstr(getenv("FUNCTIONS") ? getenv("FUNCTIONS") : "", wanted);
    return at ? (void *)(base + strtoull(at + strlen(wanted), NULL, 0)) : NULL;
}

#define NEED(type, name) \
    type (*name)(); \
    if (!(name = (type (*)())find(#name))) { \
        fprintf(stderr, "no %s\n", #name); \
        _exit(3); \
    }

static int select_alpn(void *ssl, const unsigned char **out, unsigned char *out_len, const unsigned char *in,
                       unsigned in_len, void *context)
{
    (void)ssl;
    (void)in_len;
    (void)context;
    *out = in + 1;
    *out_len = in[0];
    return 0;
}

static void print(const char *end, const char *name, const char *kind, const void *data, size_t size)
{
    printf("%s %s%s ", end, name, kind);
    for (size_t index = 0; index < size; index++)
        printf("%02x", ((const unsigned char *)data)[index]);
    printf("\n");
}

/* Follow the derefs and print what lies there. */
static void print_field(const char *end, char *ssl, const char *line)
{
    char name[40], derefs[80];
    long offset;
    size_t size;

    if (sscanf(line, "%39s %79s %ld %zu", name, derefs, &offset, &size) != 4)
        return;
    for (char *at = strtok(derefs, ","); at && strcmp(at, "-"); at = strtok(NULL, ",")) {
        ssl = *(char **)(ssl + atol(at));
        if (!ssl) {
            print(end, name, "", "", 0);
            return;
        }
    }
    print(end, name, "", ssl + offset, size);
}

static void report(const char *end, void *ssl)
{
    NEED(size_t, SSL_get_client_random)
    NEED(void, SSL_get0_alpn_selected)
    NEED(int, SSL_is_server)
    NEED(int, SSL_version)
    NEED(int, SSL_get_shutdown)
    unsigned char random[32];
    const unsigned char *alpn = NULL;
    unsigned alpn_len = 0;
    int number;
    char *fields = strdup(getenv("FIELDS")), *rest = fields;

    SSL_get_client_random(ssl, random, sizeof random);
    print(end, "client_random", "=", random, sizeof random);
    SSL_get0_alpn_selected(ssl, &alpn, &alpn_len);
    print(end, "alpn", "=", alpn, alpn_len);
    number = (int)alpn_len;
    print(end, "alpn_len", "=", &number, 4);
    number = SSL_is_server(ssl);
    print(end, "server", "=", &number, 4);
    number = SSL_version(ssl);
    print(end, "version", "=", &number, 4);
    number = SSL_get_shutdown(ssl);
    print(end, "shutdown", "=", &number, 4);
    for (char *line; (line = strsep(&rest, "\n"));)
        print_field(end, ssl, line);
    free(fields);
}

__attribute__((constructor)) static void run(void)
{
    static unsigned char protocols[] = "\x02h2\x08http/1.1";

    dl_iterate_phdr(find_base, getenv("OBJECT") ? getenv("OBJECT") : "");
    NEED(void *, TLS_method)
    NEED(void *, SSL_CTX_new)
    NEED(int, SSL_CTX_set_alpn_protos)
    NEED(void *, SSL_new)
    NEED(void, SSL_set_bio)
    NEED(void, SSL_set_connect_state)
    NEED(int, SSL_do_handshake)
    NEED(void *, BIO_new)
    NEED(void *, BIO_s_mem)
    void *ctx = SSL_CTX_new(TLS_method()), *client, *to_server, *to_client;
    long (*SSL_CTX_ctrl)() = (long (*)())find("SSL_CTX_ctrl");

    if (getenv("MAX_VERSION") && SSL_CTX_ctrl)
        SSL_CTX_ctrl(ctx, 124, strtol(getenv("MAX_VERSION"), NULL, 0), NULL); /* SSL_CTRL_SET_MAX_PROTO_VERSION */
    SSL_CTX_set_alpn_protos(ctx, protocols, (unsigned)sizeof protocols - 1);
    client = SSL_new(ctx);
    to_server = BIO_new(BIO_s_mem());
    to_client = BIO_new(BIO_s_mem());
    SSL_set_bio(client, to_client, to_server);
    SSL_set_connect_state(client);
    SSL_do_handshake(client);
    report("begun", client);
    if (getenv("PEM")) {
        NEED(int, SSL_CTX_use_certificate_file)
        NEED(int, SSL_CTX_use_PrivateKey_file)
        NEED(void, SSL_CTX_set_alpn_select_cb)
        NEED(void, SSL_set_accept_state)
        NEED(int, SSL_shutdown)
        NEED(int, SSL_read)
        char byte[1];
        NEED(int, BIO_up_ref)
        void *server;

        if (SSL_CTX_use_certificate_file(ctx, getenv("PEM"), 1) != 1 ||
            SSL_CTX_use_PrivateKey_file(ctx, getenv("PEM"), 1) != 1)
            _exit(4);
        SSL_CTX_set_alpn_select_cb(ctx, select_alpn, NULL);
        server = SSL_new(ctx);
        BIO_up_ref(to_server);
        BIO_up_ref(to_client);
        SSL_set_bio(server, to_server, to_client);
        SSL_set_accept_state(server);
        for (int turn = 0; turn < 10; turn++) {
            int done = SSL_do_handshake(server) == 1;
            done &= SSL_do_handshake(client) == 1;
            if (done)
                break;
        }
        SSL_shutdown(client);
        SSL_read(server, byte, 1);
        report("client", client);
        report("server", server);
    }
    fflush(stdout);
    _exit(0);
}
