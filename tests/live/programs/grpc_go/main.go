// The grpc-go ends of the tests: see ../grpc_end.py, of which this is the same in Go.
//
//	grpcend server JOURNAL [CERTIFICATES [TLSv1.2]]
//	grpcend client JOURNAL HOST PORT [CERTIFICATES]
//	grpcend web-server JOURNAL connect|wrapped [CERTIFICATES]
//	grpcend web-client JOURNAL HOST PORT 1|2 [CERTIFICATES]
//
// CERTIFICATES is a directory that ../../certificates.py has filled: TLS, and no newer one than the server is told.
// Messages are put together and taken apart here, so that no generated code is needed.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

const service = "test.Calls"

type entry struct {
	Call      string   `json:"call"`
	Method    string   `json:"method"`
	Requests  [][2]any `json:"requests"`
	Responses [][2]any `json:"responses"`
	Status    int      `json:"status"`
	Message   string   `json:"message"`
	Client    []any    `json:"client"`
	Server    []any    `json:"server"`
}

type journal struct {
	mutex sync.Mutex
	file  *os.File
}

func (j *journal) write(e entry) {
	line, err := json.Marshal(e)
	if err != nil {
		log.Fatal(err)
	}
	j.mutex.Lock()
	defer j.mutex.Unlock()
	if _, err := j.file.Write(append(line, '\n')); err != nil {
		log.Fatal(err)
	}
}

// A codec that leaves messages as they are.
type raw struct{}

func (raw) Name() string { return "proto" }
func (raw) Marshal(value any) ([]byte, error) {
	return *value.(*[]byte), nil
}
func (raw) Unmarshal(data []byte, value any) error {
	*value.(*[]byte) = append([]byte{}, data...)
	return nil
}

func encode(name string, count int) *[]byte {
	data := append([]byte{0x0a}, binary.AppendUvarint(nil, uint64(len(name)))...)
	data = append(data, name...)
	data = append(data, 0x10)
	data = binary.AppendUvarint(data, uint64(count))
	return &data
}

func decode(data []byte) (string, int) {
	size, used := binary.Uvarint(data[1:])
	end := 1 + used + int(size)
	count, _ := binary.Uvarint(data[end+1:])
	return string(data[1+used : end]), int(count)
}

func address(a net.Addr) []any {
	host, port, err := net.SplitHostPort(a.String())
	if err != nil {
		log.Fatal(err)
	}
	number, _ := strconv.Atoi(port)
	return []any{host, number}
}

// The server

func (j *journal) serve(_ any, stream grpc.ServerStream) error {
	full, _ := grpc.Method(stream.Context())
	from, _ := peer.FromContext(stream.Context())
	asked, _ := metadata.FromIncomingContext(stream.Context())
	e := entry{
		Method: full[len(service)+2:], Client: address(from.Addr), Requests: [][2]any{}, Responses: [][2]any{},
	}
	if numbers := asked.Get("x-call"); len(numbers) == 1 {
		e.Call = numbers[0]
	}
	receive := func() (string, int, error) {
		var data []byte
		if err := stream.RecvMsg(&data); err != nil {
			return "", 0, err
		}
		name, count := decode(data)
		e.Requests = append(e.Requests, [2]any{name, count})
		return name, count, nil
	}
	send := func(name string, count int) error {
		e.Responses = append(e.Responses, [2]any{name, count})
		return stream.SendMsg(encode(name, count))
	}
	if err := stream.SetHeader(metadata.Pairs("x-served", e.Call)); err != nil {
		log.Fatal(err)
	}
	stream.SetTrailer(metadata.Pairs("x-done-bin", "\x00\xff"+e.Call))
	err := answer(e.Method, receive, send, stream.Context())
	state, _ := status.FromError(err)
	e.Status, e.Message = int(state.Code()), state.Message()
	j.write(e)
	return err
}

func answer(
	method string, receive func() (string, int, error), send func(string, int) error, ctx context.Context,
) error {
	total := 0
	for first := true; ; first = false {
		name, count, err := receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		total += count
		switch method {
		case "Unary":
			return send(name, count)
		case "List":
			for number := 0; number < count; number++ {
				if err := send(name, number); err != nil {
					return err
				}
			}
			return nil
		case "Break":
			for number := 0; number < count; number++ {
				if err := send(name, number); err != nil {
					return err
				}
			}
			if _, _, err := receive(); !errors.Is(err, io.EOF) {
				return status.Error(codes.InvalidArgument, "one request only")
			}
			return status.Error(codes.Aborted, name)
		case "Talk":
			if err := send(name, count); err != nil {
				return err
			}
		case "Fail":
			return status.Error(codes.Code(count), name)
		case "Slow":
			if first && count > 0 {
				if err := send(name, count); err != nil {
					return err
				}
			}
			<-ctx.Done()
			return status.FromContextError(ctx.Err()).Err()
		}
	}
	if method == "Store" {
		return send("stored", total)
	}
	return nil
}

// Listens on a free port, and says which.
func listen() net.Listener {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	host, port, _ := net.SplitHostPort(listener.Addr().String())
	fmt.Printf("[\"%s\", %s]\n", host, port)
	return listener
}

func server(j *journal, secured []string) {
	options := []grpc.ServerOption{grpc.ForceServerCodec(raw{}), grpc.UnknownServiceHandler(j.serve)}
	if len(secured) > 0 {
		pair, err := tls.LoadX509KeyPair(secured[0]+"/server.pem", secured[0]+"/server.key")
		if err != nil {
			log.Fatal(err)
		}
		config := &tls.Config{Certificates: []tls.Certificate{pair}}
		if len(secured) > 1 && secured[1] == "TLSv1.2" {
			config.MaxVersion = tls.VersionTLS12
		}
		options = append(options, grpc.Creds(credentials.NewTLS(config)))
	}
	listener := listen()
	log.Fatal(grpc.NewServer(options...).Serve(listener))
}

// The client

type call struct {
	Method  string   `json:"method"`
	Send    [][2]any `json:"send"`
	Timeout int      `json:"timeout_ms"`
	Cancel  bool     `json:"cancel"`
	Gzip    bool     `json:"gzip"`
}

// Returns a call's context, with its deadline if it has one, and its entry of the journal.
func begin(number int, c call) (context.Context, context.CancelFunc, entry) {
	e := entry{Call: strconv.Itoa(number), Method: c.Method, Requests: [][2]any{}, Responses: [][2]any{}}
	if c.Timeout > 0 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(c.Timeout)*time.Millisecond)
		return ctx, cancel, e
	}
	ctx, cancel := context.WithCancel(context.Background())
	return ctx, cancel, e
}

func make_(connection *grpc.ClientConn, number int, c call, j *journal) {
	ctx, cancel, e := begin(number, c)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "x-call", e.Call, "x-data-bin", "\x00\xff"+e.Call)
	options := []grpc.CallOption{}
	if c.Gzip {
		options = append(options, grpc.UseCompressor("gzip"))
	}
	err := func() error {
		kind := &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
		stream, err := connection.NewStream(ctx, kind, "/"+service+"/"+c.Method, options...)
		if err != nil {
			return err
		}
		for _, message := range c.Send {
			name, count := message[0].(string), int(message[1].(float64))
			if err := stream.SendMsg(encode(name, count)); err != nil {
				return err
			}
			e.Requests = append(e.Requests, [2]any{name, count})
		}
		if err := stream.CloseSend(); err != nil {
			return err
		}
		for {
			var data []byte
			if err := stream.RecvMsg(&data); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			name, count := decode(data)
			e.Responses = append(e.Responses, [2]any{name, count})
			if c.Cancel {
				cancel()
			}
		}
	}()
	state, _ := status.FromError(err)
	e.Status, e.Message = int(state.Code()), state.Message()
	j.write(e)
}

func client(j *journal, host, port string, certificates []string) {
	// The calls, to be made one after the other, or {"workers": N, "calls": [...]}: by so many at once.
	asked := struct {
		Workers int    `json:"workers"`
		Calls   []call `json:"calls"`
	}{Workers: 1}
	input := bufio.NewReader(os.Stdin)
	line, err := input.ReadBytes('\n')
	if err == nil && line[0] == '[' {
		err = json.Unmarshal(line, &asked.Calls)
	} else if err == nil {
		err = json.Unmarshal(line, &asked)
	}
	if err != nil {
		log.Fatal(err)
	}
	security := insecure.NewCredentials()
	if len(certificates) == 1 {
		read, err := credentials.NewClientTLSFromFile(certificates[0]+"/ca.pem", "localhost")
		if err != nil {
			log.Fatal(err)
		}
		security = read
	}
	connection, err := grpc.Dial(
		net.JoinHostPort(host, port), grpc.WithTransportCredentials(security), grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})),
	)
	if err != nil {
		log.Fatal(err)
	}
	numbers := make(chan int)
	var working sync.WaitGroup
	for worker := 0; worker < asked.Workers; worker++ {
		working.Add(1)
		go func() {
			defer working.Done()
			for number := range numbers {
				make_(connection, number, asked.Calls[number], j)
			}
		}()
	}
	for number := range asked.Calls {
		numbers <- number
	}
	close(numbers)
	working.Wait()
	connection.Close()
	fmt.Println("done")
	io.Copy(io.Discard, os.Stdin)
}

func main() {
	file, err := os.OpenFile(os.Args[2], os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o666)
	if err != nil {
		log.Fatal(err)
	}
	j := &journal{file: file}
	switch rest := os.Args[3:]; os.Args[1] {
	case "server":
		server(j, rest)
	case "client":
		client(j, rest[0], rest[1], rest[2:])
	case "web-server":
		webServer(j, rest[0], rest[1:])
	case "web-client":
		webClient(j, rest[0], rest[1], rest[2], rest[3:])
	}
}
