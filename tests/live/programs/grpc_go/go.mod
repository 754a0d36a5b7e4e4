module grpcend

go 1.19

require (
	connectrpc.com/connect v1.14.0
	github.com/improbable-eng/grpc-web v0.15.0
	golang.org/x/net v0.17.0
	google.golang.org/grpc v1.58.3
	google.golang.org/protobuf v1.32.0
)

require (
	github.com/cenkalti/backoff/v4 v4.1.1 // indirect
	github.com/desertbit/timer v0.0.0-20180107155436-c41aec40b27f // indirect
	github.com/golang/protobuf v1.5.3 // indirect
	github.com/klauspost/compress v1.11.7 // indirect
	github.com/rs/cors v1.7.0 // indirect
	golang.org/x/sys v0.13.0 // indirect
	golang.org/x/text v0.13.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20230711160842-782d3b101e98 // indirect
	nhooyr.io/websocket v1.8.6 // indirect
)
