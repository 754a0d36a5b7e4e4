import java.io.BufferedReader;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.util.List;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SNIHostName;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLParameters;
import javax.net.ssl.SSLServerSocket;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.TrustManagerFactory;

/**
 * Java's own TLS as a client and as a server, with no more HTTP than it takes.
 *
 * <pre>
 * java Jsse.java client PORT CA COUNT       COUNT requests on a connection, each time that standard input says "go"
 * java Jsse.java server PORT CERTIFICATES   answers "hello" to every request
 * </pre>
 */
public final class Jsse {
    private static String readHead(InputStream in) throws IOException {
        StringBuilder head = new StringBuilder();
        while (head.indexOf("\r\n\r\n") < 0) {
            int octet = in.read();
            if (octet < 0) {
                return null;
            }
            head.append((char) octet);
        }
        return head.toString();
    }

    private static void setProtocols(SSLSocket socket, String serverName) {
        SSLParameters parameters = socket.getSSLParameters();
        parameters.setApplicationProtocols(new String[] {"http/1.1"});
        if (serverName != null) {
            parameters.setServerNames(List.of(new SNIHostName(serverName)));
        }
        socket.setSSLParameters(parameters);
    }

    private static void call(SSLContext context, int port, int count) throws IOException {
        try (SSLSocket socket = (SSLSocket) context.getSocketFactory().createSocket("127.0.0.1", port)) {
            setProtocols(socket, "tls.test");
            InputStream in = socket.getInputStream();
            OutputStream out = socket.getOutputStream();
            for (int i = 0; i < count; i++) {
                String request = "GET /bytes/" + i + " HTTP/1.1\r\nHost: tls.test\r\nX-Call: " + i + "\r\n\r\n";
                out.write(request.getBytes(StandardCharsets.US_ASCII));
                String head = readHead(in).toLowerCase();
                int at = head.indexOf("content-length:") + 15;
                in.readNBytes(Integer.parseInt(head.substring(at, head.indexOf('\r', at)).trim()));
            }
        }
    }

    private static void serve(SSLSocket socket) {
        try (socket) {
            setProtocols(socket, null);
            while (readHead(socket.getInputStream()) != null) {
                String answer = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
                socket.getOutputStream().write(answer.getBytes(StandardCharsets.US_ASCII));
            }
        } catch (IOException gone) {
            // The client has hung up.
        }
    }

    public static void main(String[] arguments) throws Exception {
        int port = Integer.parseInt(arguments[1]);
        SSLContext context = SSLContext.getInstance("TLS");
        KeyStore store = KeyStore.getInstance("PKCS12");
        if (arguments[0].equals("client")) {
            store.load(null, null);
            try (InputStream ca = new FileInputStream(arguments[2])) {
                store.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(ca));
            }
            TrustManagerFactory trust = TrustManagerFactory.getInstance("PKIX");
            trust.init(store);
            context.init(null, trust.getTrustManagers(), null);
            BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
            System.out.println("ready");
            while ("go".equals(input.readLine())) {
                call(context, port, Integer.parseInt(arguments[3]));
                System.out.println("done");
            }
            return;
        }
        char[] password = "changeit".toCharArray();
        try (InputStream pair = new FileInputStream(arguments[2] + "/server.p12")) {
            store.load(pair, password);
        }
        KeyManagerFactory keys = KeyManagerFactory.getInstance("PKIX");
        keys.init(store, password);
        context.init(keys.getKeyManagers(), null, null);
        SSLServerSocket listener = (SSLServerSocket) context.getServerSocketFactory().createServerSocket(
            port, 128, java.net.InetAddress.getLoopbackAddress());
        while (true) {
            SSLSocket socket = (SSLSocket) listener.accept();
            new Thread(() -> serve(socket)).start();
        }
    }
}
