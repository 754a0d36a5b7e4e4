import java.io.InputStream;
import java.security.cert.X509Certificate;
import java.util.List;
import javax.net.ssl.*;

/** One request by JSSE; prints what the session agreed on. Arguments: port, sni, alpn,...; with VERIFY=1 it refuses the certificate. */
public class Client {
    public static void main(String[] args) throws Exception {
        SSLContext context = SSLContext.getInstance("TLS");
        TrustManager[] trusting = {new X509TrustManager() {
            public void checkClientTrusted(X509Certificate[] chain, String type) {}
            public void checkServerTrusted(X509Certificate[] chain, String type) {}
            public X509Certificate[] getAcceptedIssuers() { return new X509Certificate[0]; }
        }};
        context.init(null, System.getenv("VERIFY") == null ? trusting : null, null);
        try (SSLSocket socket = (SSLSocket) context.getSocketFactory().createSocket("127.0.0.1", Integer.parseInt(args[0]))) {
            SSLParameters parameters = socket.getSSLParameters();
            parameters.setServerNames(List.of(new SNIHostName(args[1])));
            parameters.setApplicationProtocols(args[2].split(","));
            socket.setSSLParameters(parameters);
            socket.getOutputStream().write("GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n".getBytes());
            InputStream answer = socket.getInputStream();
            while (answer.read() >= 0) {}
            System.out.printf("{\"version\": \"%s\", \"cipher\": \"%s\", \"alpn\": \"%s\"}%n",
                socket.getSession().getProtocol(), socket.getSession().getCipherSuite(), socket.getApplicationProtocol());
        }
    }
}
