// The Go server of the tests: net/http, with a journal like the Python servers'.
//
//	go build -o server main.go && ./server JOURNAL
//
// Prints the address it listens on as one JSON line. Paths: /bytes/N, /status/CODE, /echo. The headers of its
// answers are not in the journal, because net/http adds to them after the handler; the client's journal has them.
package main

import (
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
	Client          [2]any      `json:"client"`
	Server          [2]any      `json:"server"`
}

func address(text string) [2]any {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		log.Fatal(err)
	}
	number, _ := strconv.Atoi(port)
	return [2]any{host, number}
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
	kind, argument, _ := strings.Cut(strings.Trim(r.URL.Path, "/"), "/")
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
	journal, err := os.OpenFile(os.Args[1], os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o666)
	if err != nil {
		log.Fatal(err)
	}
	var writing sync.Mutex
	serve := func(w http.ResponseWriter, r *http.Request) {
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
			address(r.RemoteAddr), address(local),
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
	log.Fatal(http.Serve(listener, http.HandlerFunc(serve)))
}
