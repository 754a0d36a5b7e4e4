// The gRPC-Web ends: connect-go as server and as client, and the grpc-go server of main.go behind improbable-eng's
// wrapper, which takes the text form too. All take HTTP/1.1 and HTTP/2, by prior knowledge or by ALPN.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"github.com/improbable-eng/grpc-web/go/grpcweb"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/h2c"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// The codec of main.go, with which connect writes the details of a status too.
type lenient struct{ raw }

func (lenient) Marshal(value any) ([]byte, error) {
	if details, ok := value.(proto.Message); ok {
		return proto.Marshal(details)
	}
	return raw{}.Marshal(value)
}

func (lenient) Unmarshal(data []byte, value any) error {
	if details, ok := value.(proto.Message); ok {
		return proto.Unmarshal(data, details)
	}
	return raw{}.Unmarshal(data, value)
}

// The servers

type message = connect.Response[[]byte]

// What a handler of connect knows of a call.
type served struct {
	method, peer string
	asked        http.Header
	receive      func() (*[]byte, error)
	send         func(*[]byte) error
}

// Answers a call as main.go's server does, writes it down, and says what stands before and behind the messages.
func (j *journal) answer(ctx context.Context, s served, before, behind http.Header) error {
	client := strings.Split(s.peer, ":")
	port, _ := strconv.Atoi(client[1])
	number := s.asked.Get("X-Call")
	e := entry{
		Call: number, Method: s.method, Client: []any{client[0], port}, Requests: [][2]any{}, Responses: [][2]any{},
	}
	receive := func() (string, int, error) {
		data, err := s.receive()
		if err != nil {
			return "", 0, err
		}
		name, count := decode(*data)
		e.Requests = append(e.Requests, [2]any{name, count})
		return name, count, nil
	}
	send := func(name string, count int) error {
		e.Responses = append(e.Responses, [2]any{name, count})
		return s.send(encode(name, count))
	}
	before.Set("X-Served", number)
	behind.Set("X-Done-Bin", connect.EncodeBinaryHeader([]byte("\x00\xff"+number)))
	err := answer(s.method, receive, send, ctx)
	state, _ := status.FromError(err)
	e.Status, e.Message = int(state.Code()), state.Message()
	j.write(e)
	if err == nil {
		return nil
	}
	return connect.NewError(connect.Code(state.Code()), errors.New(state.Message()))
}

// One that gives the only message of a request, and then its end.
func once(data *[]byte) func() (*[]byte, error) {
	return func() (*[]byte, error) {
		given := data
		data = nil
		if given == nil {
			return nil, io.EOF
		}
		return given, nil
	}
}

func (j *journal) connect() http.Handler {
	mux := http.NewServeMux()
	handle := func(method string, build func(string, ...connect.HandlerOption) *connect.Handler) {
		path := "/" + service + "/" + method
		mux.Handle(path, build(path, connect.WithCodec(lenient{})))
	}
	for _, each := range []string{"Unary", "Fail"} {
		method := each
		handle(method, func(path string, options ...connect.HandlerOption) *connect.Handler {
			return connect.NewUnaryHandler(path, func(ctx context.Context, r *connect.Request[[]byte]) (*message, error) {
				response := connect.NewResponse(&[]byte{})
				send := func(data *[]byte) error { *response.Msg = *data; return nil }
				s := served{method, r.Peer().Addr, r.Header(), once(r.Msg), send}
				before, behind := response.Header(), response.Trailer()
				err := j.answer(ctx, s, before, behind)
				if failure := new(connect.Error); errors.As(err, &failure) {
					for _, fields := range []http.Header{before, behind} {
						for name, values := range fields {
							failure.Meta()[name] = values
						}
					}
				}
				return response, err
			}, options...)
		})
	}
	for _, each := range []string{"List", "Break", "Slow"} {
		method := each
		handle(method, func(path string, options ...connect.HandlerOption) *connect.Handler {
			type stream = connect.ServerStream[[]byte]
			return connect.NewServerStreamHandler(path, func(ctx context.Context, r *connect.Request[[]byte], out *stream) error {
				s := served{method, r.Peer().Addr, r.Header(), once(r.Msg), out.Send}
				return j.answer(ctx, s, out.ResponseHeader(), out.ResponseTrailer())
			}, options...)
		})
	}
	handle("Store", func(path string, options ...connect.HandlerOption) *connect.Handler {
		type stream = connect.ClientStream[[]byte]
		return connect.NewClientStreamHandler(path, func(ctx context.Context, in *stream) (*message, error) {
			response := connect.NewResponse(&[]byte{})
			receive := func() (*[]byte, error) {
				if in.Receive() {
					return in.Msg(), nil
				}
				if in.Err() != nil {
					return nil, in.Err()
				}
				return nil, io.EOF
			}
			send := func(data *[]byte) error { *response.Msg = *data; return nil }
			s := served{"Store", in.Peer().Addr, in.RequestHeader(), receive, send}
			return response, j.answer(ctx, s, response.Header(), response.Trailer())
		}, options...)
	})
	handle("Talk", func(path string, options ...connect.HandlerOption) *connect.Handler {
		type stream = connect.BidiStream[[]byte, []byte]
		return connect.NewBidiStreamHandler(path, func(ctx context.Context, both *stream) error {
			s := served{"Talk", both.Peer().Addr, both.RequestHeader(), both.Receive, both.Send}
			return j.answer(ctx, s, both.ResponseHeader(), both.ResponseTrailer())
		}, options...)
	})
	return mux
}

func webServer(j *journal, kind string, certificates []string) {
	handler := j.connect()
	if kind == "wrapped" {
		handler = grpcweb.WrapServer(grpc.NewServer(grpc.ForceServerCodec(raw{}), grpc.UnknownServiceHandler(j.serve)))
	}
	listener := listen()
	server := &http.Server{Handler: h2c.NewHandler(handler, &http2.Server{})}
	if len(certificates) == 1 {
		log.Fatal(server.ServeTLS(listener, certificates[0]+"/server.pem", certificates[0]+"/server.key"))
	}
	log.Fatal(server.Serve(listener))
}

// The client

func transport(version string, certificates []string) http.RoundTripper {
	if len(certificates) == 0 {
		if version == "2" {
			dial := func(ctx context.Context, network, address string, _ *tls.Config) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, network, address)
			}
			return &http2.Transport{AllowHTTP: true, DialTLSContext: dial}
		}
		return &http.Transport{}
	}
	trusted := x509.NewCertPool()
	read, err := os.ReadFile(certificates[0] + "/ca.pem")
	if err != nil || !trusted.AppendCertsFromPEM(read) {
		log.Fatal("there is no CA to trust: ", err)
	}
	config := &tls.Config{RootCAs: trusted, ServerName: "localhost"}
	return &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: version == "2"}
}

type caller = connect.Client[[]byte, []byte]

func ask(client *caller, number int, c call, j *journal) {
	ctx, cancel, e := begin(number, c)
	defer cancel()
	say := func(asked http.Header) {
		asked.Set("X-Call", e.Call)
		asked.Set("X-Data-Bin", connect.EncodeBinaryHeader([]byte("\x00\xff"+e.Call)))
	}
	next := 0
	take := func() *[]byte {
		name, count := c.Send[next][0].(string), int(c.Send[next][1].(float64))
		e.Requests = append(e.Requests, [2]any{name, count})
		next++
		return encode(name, count)
	}
	sendAll := func(send func(*[]byte) error) error {
		for range c.Send {
			if err := send(take()); err != nil {
				return err
			}
		}
		return nil
	}
	received := func(data *[]byte) {
		name, count := decode(*data)
		e.Responses = append(e.Responses, [2]any{name, count})
		if c.Cancel {
			cancel()
		}
	}
	err := func() error {
		switch c.Method {
		case "List", "Break", "Slow":
			request := connect.NewRequest(take())
			say(request.Header())
			stream, err := client.CallServerStream(ctx, request)
			if err != nil {
				return err
			}
			defer stream.Close()
			for stream.Receive() {
				received(stream.Msg())
			}
			return stream.Err()
		case "Store":
			stream := client.CallClientStream(ctx)
			say(stream.RequestHeader())
			if err := sendAll(stream.Send); err != nil {
				return err
			}
			response, err := stream.CloseAndReceive()
			if err == nil {
				received(response.Msg)
			}
			return err
		case "Talk":
			stream := client.CallBidiStream(ctx)
			say(stream.RequestHeader())
			if err := sendAll(stream.Send); err != nil {
				return err
			}
			if err := stream.CloseRequest(); err != nil {
				return err
			}
			defer stream.CloseResponse()
			for {
				data, err := stream.Receive()
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err != nil {
					return err
				}
				received(data)
			}
		default:
			request := connect.NewRequest(take())
			say(request.Header())
			response, err := client.CallUnary(ctx, request)
			if err == nil {
				received(response.Msg)
			}
			return err
		}
	}()
	if failure := new(connect.Error); errors.As(err, &failure) {
		e.Status, e.Message = int(failure.Code()), failure.Message()
	} else if err != nil {
		log.Fatal(err)
	}
	j.write(e)
}

// Reads lists of calls, and says "done" after each: all are made on one connection.
func webClient(j *journal, host, port, version string, certificates []string) {
	scheme := "http"
	if len(certificates) == 1 {
		scheme = "https"
	}
	client := &http.Client{Transport: transport(version, certificates)}
	input := json.NewDecoder(os.Stdin)
	for number := 0; ; {
		calls := []call{}
		if err := input.Decode(&calls); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			log.Fatal(err)
		}
		for _, c := range calls {
			options := []connect.ClientOption{connect.WithGRPCWeb(), connect.WithCodec(lenient{})}
			if c.Gzip {
				options = append(options, connect.WithSendGzip())
			}
			url := fmt.Sprintf("%s://%s/%s/%s", scheme, net.JoinHostPort(host, port), service, c.Method)
			ask(connect.NewClient[[]byte, []byte](client, url, options...), number, c, j)
			number++
		}
		fmt.Println("done")
	}
}
