package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptrace"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

type request struct {
	Method  string            `json:"method"`
	Path    string            `json:"path"`
	Headers map[string]string `json:"headers"`
	Size    *int              `json:"size"`
	Chunked bool              `json:"chunked"`
	Timeout int64             `json:"timeout_ms"` // of the body: what has come by then is enough
}

// callAll makes calls as clients/keepalive.py does, on so many CONNECTIONS, each time that its input says "go":
//
//	./server client JOURNAL ADDRESS CA CONNECTIONS ROUNDS REQUEST...
//
// Header fields are not in its journal, because net/http adds to them and takes some away; the server's has them.
func callAll(arguments []string) {
	journal, err := os.OpenFile(arguments[0], os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o666)
	if err != nil {
		log.Fatal(err)
	}
	var to [2]interface{}
	if err := json.Unmarshal([]byte(arguments[1]), &to); err != nil {
		log.Fatal(err)
	}
	pem, err := os.ReadFile(arguments[2])
	if err != nil {
		log.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	connections, _ := strconv.Atoi(arguments[3])
	rounds, _ := strconv.Atoi(arguments[4])
	var requests []request
	for _, text := range arguments[5:] {
		var r request
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			log.Fatal(err)
		}
		requests = append(requests, r)
	}
	clients := make([]http.Client, connections)
	for i := range clients {
		clients[i].Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "tls.test"}}
	}
	var number int64
	var all sync.WaitGroup
	var writing sync.Mutex
	input := bufio.NewReader(os.Stdin)
	for {
		if line, _ := input.ReadString('\n'); line != "go\n" {
			return
		}
		for i := range clients {
			all.Add(1)
			go func(client *http.Client) {
				defer all.Done()
				for n := 0; n < rounds*len(requests); n++ {
					made := makeCall(client, to, requests[n%len(requests)], atomic.AddInt64(&number, 1))
					line, _ := json.Marshal(made)
					writing.Lock()
					journal.Write(append(line, '\n'))
					writing.Unlock()
				}
			}(&clients[i])
		}
		all.Wait()
		fmt.Println("done")
	}
}

func makeCall(client *http.Client, to [2]interface{}, wanted request, number int64) call {
	method, size := wanted.Method, 0
	if method == "" {
		method = "GET"
	}
	var body io.Reader
	if wanted.Size != nil {
		size = *wanted.Size
		text := strings.Repeat("abcdefghijklmnopqrstuvwxyz", size/26+1)[:size]
		body = bytes.NewReader([]byte(text))
		if wanted.Chunked {
			body = io.MultiReader(body) // of unknown length
		}
	}
	r, err := http.NewRequest(method, fmt.Sprintf("https://%v:%v%s", to[0], to[1], wanted.Path), body)
	if err != nil {
		log.Fatal(err)
	}
	for name, value := range wanted.Headers {
		r.Header.Set(name, value)
	}
	r.Header.Set("X-Call", strconv.FormatInt(number, 10))
	made := call{Method: method, Path: wanted.Path, RequestSize: size}
	made.RequestHeaders = [][2]string{{"x-call", strconv.FormatInt(number, 10)}}
	trace := httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) {
		made.Client, made.Server = address(got.Conn.LocalAddr().String()), address(got.Conn.RemoteAddr().String())
	}}
	ctx, cancel := context.WithCancel(httptrace.WithClientTrace(r.Context(), &trace))
	defer cancel()
	response, err := client.Do(r.WithContext(ctx))
	if err != nil {
		log.Fatal(err)
	}
	if wanted.Timeout > 0 {
		defer time.AfterFunc(time.Duration(wanted.Timeout)*time.Millisecond, cancel).Stop()
	}
	content, err := io.ReadAll(response.Body)
	if err != nil && (wanted.Timeout == 0 || ctx.Err() == nil) {
		log.Fatal(err)
	}
	response.Body.Close()
	made.ResponseHeaders = [][2]string{}
	made.Status, made.ResponseSize, made.TLS = response.StatusCode, len(content), session(response.TLS)
	return made
}
