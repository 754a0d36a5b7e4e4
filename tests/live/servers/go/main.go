// The Go server of the tests: net/http, with a journal like the Python servers'. With a directory of certificates it
// speaks HTTPS, HTTP/1.1 only. client.go is the other end.
//
//	go build -o server main.go client.go && ./server JOURNAL [CERTIFICATES]
//
// Prints the address it listens on as one JSON line. Paths: /bytes/N, /status/CODE, /echo. The headers of its
// answers are not in the journal, because net/http adds to them after the handler; the client's journal has them.
package main

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
)

type call struct {
	Method          string      `json:"method"`
	Path            string      `json:"path"`
	Status          int         `json:"status"`
	RequestHeaders  [][2]string `json:"request_headers"`
	RequestSize     int         `json:"request_size"`
	ResponseHeaders [][2]string `json:"response_headers"`
	ResponseSize    int         `json:"response_size"`
	Client          [2]interface{}      `json:"client"`
	Server          [2]interface{}      `json:"server"`
	TLS             *[3]string  `json:"tls"`
}

// session tells of a TLS connection's version, server name and protocol.
func session(state *tls.ConnectionState) *[3]string {
	if state == nil {
		return nil
	}
	versions := map[uint16]string{tls.VersionTLS12: "TLSv1.2", tls.VersionTLS13: "TLSv1.3"}
	return &[3]string{versions[state.Version], state.ServerName, state.NegotiatedProtocol}
}

func address(text string) [2]interface{} {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		log.Fatal(err)
	}
	number, _ := strconv.Atoi(port)
	return [2]interface{}{host, number}
}

// headers gives back what net/http has moved out of the header map.
func headers(r *http.Request) [][2]string {
	pairs := [][2]string{{"host", r.Host}}
	if len(r.TransferEncoding) > 0 {
		pairs = append(pairs, [2]string{"transfer-encoding", strings.Join(r.TransferEncoding, ", ")})
	}
	for name, values := range r.Header {
		pairs = append(pairs, [2]string{strings.ToLower(name), strings.Join(values, ", ")})
	}
	sort.Slice(pairs, func(i, j int) bool { return pairs[i][0] < pairs[j][0] })
	return pairs
}

// answer returns what the path asks for.
func answer(r *http.Request, body []byte) (int, []byte) {
	parts := append(strings.SplitN(strings.Trim(r.URL.Path, "/"), "/", 2), "")
	kind, argument := parts[0], parts[1]
	number, _ := strconv.Atoi(argument)
	switch kind {
	case "bytes":
		return http.StatusOK, []byte(strings.Repeat("abcdefghijklmnopqrstuvwxyz", number/26+1)[:number])
	case "status":
		return number, nil
	default:
		return http.StatusOK, body
	}
}

func main() {
	if os.Args[1] == "client" {
		callAll(os.Args[2:])
	} else {
		serve(os.Args[1:])
	}
}

func serve(arguments []string) {
	journal, err := os.OpenFile(arguments[0], os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o666)
	if err != nil {
		log.Fatal(err)
	}
	var writing sync.Mutex
	answerAndNote := func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			log.Fatal(err)
		}
		status, content := answer(r, body)
		if r.ContentLength >= 0 { // a request in chunks is answered in chunks
			w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		}
		w.WriteHeader(status)
		sent := 0
		if r.Method != http.MethodHead {
			sent, _ = w.Write(content)
		}
		local := r.Context().Value(http.LocalAddrContextKey).(net.Addr).String()
		line, _ := json.Marshal(call{
			r.Method, r.RequestURI, status, headers(r), len(body), [][2]string{}, sent,
			address(r.RemoteAddr), address(local), session(r.TLS),
		})
		writing.Lock()
		defer writing.Unlock()
		journal.Write(append(line, '\n'))
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	fmt.Printf("[\"127.0.0.1\", %d]\n", port)
	server := http.Server{
		Handler:      http.HandlerFunc(answerAndNote),
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}, // no HTTP/2
	}
	if len(arguments) > 1 {
		log.Fatal(server.ServeTLS(listener, arguments[1]+"/server.pem", arguments[1]+"/server.key"))
	}
	log.Fatal(server.Serve(listener))
}
