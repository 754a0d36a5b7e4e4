/* A client and a server that call OpenSSL in every way that matters for telling sessions and sockets apart.
 *
 *     openssl client PORT CA SCENARIO COUNT
 *     openssl server PORT CERTIFICATES
 *
 * The client makes COUNT calls (GET /bytes/N?SCENARIO, numbered in X-Call) when its standard input says "go", says
 * "done" and ends when its input ends. In the scenario "plain" it does so each time. It keeps no journal, nor does the server: the other end does.
 *
 *     plain      one connection, SSL_write and SSL_read
 *     ex         one connection, SSL_write_ex and SSL_read_ex
 *     peek       every byte is looked at with SSL_peek before it is read
 *     two        two connections on one thread: both requests are sent before an answer is read
 *     threads    one connection, a new thread for each call
 *     halves     one connection, one thread that writes and one that reads
 *     freed      a connection for each call: the object is freed and made again, the descriptor closed and opened again
 *     reused     a connection for each call on the same object, by SSL_clear
 *     memory     memory BIOs, with the bytes carried by the program itself
 *     partial    POST /echo of 1 MB on a socket that does not block, with partial writes and retries
 *     forking    one connection, with 50 fork()s between calls, each of which must succeed
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define ECHOED 1000003

struct peer {
	SSL *ssl;
	int fd;
	BIO *in, *out; /* scenario memory */
};

static SSL_CTX *context;
static int port;
static const char *scenario;

static void fail(const char *what)
{
	fprintf(stderr, "%s failed\n", what);
	ERR_print_errors_fp(stderr);
	_exit(1);
}

static int is(const char *name)
{
	return strcmp(scenario, name) == 0;
}

static struct sockaddr_in here(void)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return to;
}

static int dial(void)
{
	struct sockaddr_in to = here();
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof(to)))
		fail("connect");
	return fd;
}

/* Memory BIOs: send what OpenSSL has written, and with `more` receive what it is to read. */
static void carry(struct peer *p, int more)
{
	char bytes[20000];
	int n;
	while ((n = BIO_read(p->out, bytes, sizeof(bytes))) > 0)
		for (int at = 0, sent; at < n; at += sent)
			if ((sent = send(p->fd, bytes + at, n - at, 0)) <= 0)
				fail("send");
	if (!more)
		return;
	if ((n = recv(p->fd, bytes, sizeof(bytes), 0)) <= 0)
		fail("recv");
	BIO_write(p->in, bytes, n);
}

static void wait_for(struct peer *p, int result)
{
	int error = SSL_get_error(p->ssl, result);
	if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE)
		fail("TLS");
	if (p->out) {
		carry(p, 1);
		return;
	}
	struct pollfd wanted = {p->fd, error == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT, 0};
	poll(&wanted, 1, -1);
}

static void handshake(struct peer *p)
{
	int result;
	SSL_set_tlsext_host_name(p->ssl, "tls.test");
	if (is("memory")) {
		p->in = BIO_new(BIO_s_mem());
		p->out = BIO_new(BIO_s_mem());
		SSL_set_bio(p->ssl, p->in, p->out);
	} else {
		SSL_set_fd(p->ssl, p->fd);
	}
	while ((result = SSL_connect(p->ssl)) != 1)
		wait_for(p, result);
	if (p->out)
		carry(p, 0);
	if (is("partial")) {
		SSL_set_mode(p->ssl, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
		fcntl(p->fd, F_SETFL, O_NONBLOCK);
	}
}

static struct peer open_peer(void)
{
	struct peer p = {SSL_new(context), dial(), NULL, NULL};
	handshake(&p);
	return p;
}

static void close_peer(struct peer *p)
{
	SSL_shutdown(p->ssl);
	if (p->out)
		carry(p, 0);
	SSL_free(p->ssl);
	close(p->fd);
}

static void write_all(struct peer *p, const char *data, size_t length)
{
	for (size_t at = 0; at < length;) {
		size_t n = 0;
		int result;
		if (is("ex")) {
			result = SSL_write_ex(p->ssl, data + at, length - at, &n);
		} else {
			result = SSL_write(p->ssl, data + at, length - at);
			n = result > 0 ? result : 0;
		}
		if (n == 0)
			wait_for(p, result);
		at += n;
	}
	if (p->out)
		carry(p, 0);
}

static size_t read_some(struct peer *p, char *into, size_t room)
{
	for (;;) {
		size_t n = 0;
		int result;
		if (is("peek") && SSL_peek(p->ssl, into, room) <= 0)
			fail("SSL_peek");
		if (is("ex")) {
			result = SSL_read_ex(p->ssl, into, room, &n);
		} else {
			result = SSL_read(p->ssl, into, room);
			n = result > 0 ? result : 0;
		}
		if (n)
			return n;
		wait_for(p, result);
	}
}

static void ask(struct peer *p, int number)
{
	static char body[ECHOED];
	char text[300];
	if (is("partial")) {
		memset(body, 'x', sizeof(body));
		snprintf(text, sizeof(text),
			"POST /echo HTTP/1.1\r\nHost: tls.test\r\nX-Call: %d\r\nContent-Length: %d\r\n\r\n", number,
			ECHOED);
		write_all(p, text, strlen(text));
		write_all(p, body, sizeof(body));
		return;
	}
	snprintf(text, sizeof(text), "GET /bytes/%d?%s HTTP/1.1\r\nHost: tls.test\r\nX-Call: %d\r\n\r\n", number * 3001,
		scenario, number);
	write_all(p, text, strlen(text));
}

static void hear(struct peer *p)
{
	static _Thread_local char text[1 << 16];
	size_t have = 0;
	char *end = NULL;
	while (!end) {
		have += read_some(p, text + have, sizeof(text) - 1 - have);
		text[have] = 0;
		end = strstr(text, "\r\n\r\n");
	}
	char *length = strcasestr(text, "content-length:");
	if (!length)
		fail("finding a length");
	size_t left = atol(length + 15) - (have - (end + 4 - text));
	while (left)
		left -= read_some(p, text, left < sizeof(text) ? left : sizeof(text));
}

static void call(struct peer *p, int number)
{
	ask(p, number);
	hear(p);
}

struct part {
	struct peer *peer;
	int from, to;
	void (*act)(struct peer *, int);
};

static void hear_one(struct peer *p, int number)
{
	(void)number;
	hear(p);
}

static void *run_part(void *argument)
{
	struct part *part = argument;
	for (int number = part->from; number < part->to; number++)
		part->act(part->peer, number);
	return NULL;
}

static void run_client(int count)
{
	static struct peer kept;
	static int made;
	struct peer one = kept.ssl ? kept : open_peer(), two = {0};
	if (is("two"))
		two = open_peer();
	if (is("halves")) { /* in turns: an SSL object may not be used by two threads at once */
		for (int number = 0; number < count; number++) {
			struct part parts[2] = {{&one, number, number + 1, ask}, {&one, number, number + 1, hear_one}};
			for (int i = 0; i < 2; i++) {
				pthread_t thread;
				pthread_create(&thread, NULL, run_part, &parts[i]);
				pthread_join(thread, NULL);
			}
		}
		count = 0;
	}
	for (int number = made; number < made + count; number++) {
		if (is("two")) {
			ask(&one, number);
			ask(&two, ++number);
			hear(&two);
			hear(&one);
		} else if (is("threads")) {
			struct part part = {&one, number, number + 1, call};
			pthread_t thread;
			pthread_create(&thread, NULL, run_part, &part);
			pthread_join(thread, NULL);
		} else {
			call(&one, number);
		}
		if (number + 1 < count && is("freed")) {
			close_peer(&one);
			one = open_peer();
		}
		if (number + 1 < count && is("reused")) {
			SSL_shutdown(one.ssl);
			close(one.fd);
			if (!SSL_clear(one.ssl))
				fail("SSL_clear");
			one.fd = dial();
			handshake(&one);
		}
		for (int i = 0; is("forking") && i < 50; i++) {
			pid_t child = fork();
			if (child == 0)
				_exit(0);
			if (child < 0)
				fail("fork");
			waitpid(child, NULL, 0);
		}
	}
	if (is("plain")) {
		kept = one;
		made += count;
		return;
	}
	close_peer(&one);
	if (two.ssl)
		close_peer(&two);
}

static void *serve_one(void *argument)
{
	struct peer p = {SSL_new(context), (int)(long)argument, NULL, NULL};
	static _Thread_local char text[1 << 17], body[1 << 17];
	size_t have = 0;
	SSL_set_fd(p.ssl, p.fd);
	if (SSL_accept(p.ssl) != 1)
		goto gone;
	for (;;) {
		char *end;
		text[have] = 0;
		while (!(end = strstr(text, "\r\n\r\n"))) {
			int n = SSL_read(p.ssl, text + have, sizeof(text) - 1 - have);
			if (n <= 0)
				goto gone;
			have += n;
			text[have] = 0;
		}
		*end = 0;
		char *length = strcasestr(text, "content-length:");
		size_t head = end + 4 - text, size = length ? atol(length + 15) : 0;
		while (have < head + size) {
			int n = SSL_read(p.ssl, text + have, sizeof(text) - 1 - have);
			if (n <= 0)
				goto gone;
			have += n;
		}
		char *path = strchr(text, ' ') + 1;
		size_t answer = size;
		memcpy(body, text + head, size);
		if (strncmp(path, "/bytes/", 7) == 0) {
			answer = atol(path + 7);
			for (size_t i = 0; i < answer; i++)
				body[i] = 'a' + i % 26;
		}
		char line[200];
		snprintf(line, sizeof(line), "HTTP/1.1 200 OK\r\nServer: openssl.c\r\nContent-Length: %zu\r\n\r\n",
			answer);
		if (SSL_write(p.ssl, line, strlen(line)) <= 0)
			goto gone;
		if (answer && strncmp(text, "HEAD", 4) && SSL_write(p.ssl, body, answer) <= 0)
			goto gone;
		have -= head + size;
		memmove(text, text + head + size, have);
	}
gone:
	SSL_free(p.ssl);
	close(p.fd);
	return NULL;
}

int main(int argc, char **argv)
{
	char word[16] = "";
	if (argc < 4)
		return 2;
	signal(SIGPIPE, SIG_IGN);
	port = atoi(argv[2]);
	scenario = argc > 4 ? argv[4] : "";
	if (strcmp(argv[1], "client") == 0) {
		context = SSL_CTX_new(TLS_client_method());
		SSL_CTX_load_verify_locations(context, argv[3], NULL);
		SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
		while (fgets(word, sizeof(word), stdin)) {
			run_client(atoi(argv[5]));
			puts("done");
			fflush(stdout);
		}
		return 0;
	}
	char path[4096];
	context = SSL_CTX_new(TLS_server_method());
	snprintf(path, sizeof(path), "%s/server.pem", argv[3]);
	SSL_CTX_use_certificate_chain_file(context, path);
	snprintf(path, sizeof(path), "%s/server.key", argv[3]);
	SSL_CTX_use_PrivateKey_file(context, path, SSL_FILETYPE_PEM);
	int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
	struct sockaddr_in at = here();
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(listener, (struct sockaddr *)&at, sizeof(at)) || listen(listener, 128))
		fail("listen");
	for (;;) {
		long fd = accept(listener, NULL, NULL);
		pthread_t thread;
		if (fd >= 0 && pthread_create(&thread, NULL, serve_one, (void *)fd) == 0)
			pthread_detach(thread);
	}
}
