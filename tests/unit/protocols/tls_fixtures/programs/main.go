// One exchange by Go's crypto/tls. Arguments: client PORT SNI ALPN,... or server PORT FOLDER ALPN,...
// With VERIFY=1 the client checks the certificate, and refuses it.
// With ECH=1 both ends use Encrypted Client Hello: the key is derived from a constant, the front is front.example.
package main

import (
	"bufio"
	"crypto/ecdh"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
)

func echKey() (private []byte, config []byte) {
	seed := []byte(strings.Repeat("apitrace", 4))
	key, err := ecdh.X25519().NewPrivateKey(seed)
	if err != nil {
		log.Fatal(err)
	}
	var body []byte
	body = append(body, 7, 0, 0x20) // config id, KEM: X25519 with HKDF-SHA256
	body = append(binary.BigEndian.AppendUint16(body, 32), key.PublicKey().Bytes()...)
	body = append(body, 0, 4, 0, 1, 0, 1, 32) // HKDF-SHA256, AES-128-GCM; the longest name
	body = append(append(body, 13), "front.example"...)
	body = append(body, 0, 0) // no extensions
	config = binary.BigEndian.AppendUint16([]byte{0xfe, 0x0d}, uint16(len(body)))
	return seed, append(config, body...)
}

func main() {
	role, port, third := os.Args[1], os.Args[2], os.Args[3]
	config := &tls.Config{InsecureSkipVerify: os.Getenv("VERIFY") == ""}
	if os.Args[4] != "-" {
		config.NextProtos = strings.Split(os.Args[4], ",")
	}
	private, ech := echKey()
	if role == "server" {
		certificate, err := tls.LoadX509KeyPair(third+"/cert.pem", third+"/key.pem")
		if err != nil {
			log.Fatal(err)
		}
		config.Certificates = []tls.Certificate{certificate}
		if os.Getenv("ECH") != "" {
			config.EncryptedClientHelloKeys = []tls.EncryptedClientHelloKey{{Config: ech, PrivateKey: private}}
		}
		listener, err := tls.Listen("tcp", "127.0.0.1:"+port, config)
		if err != nil {
			log.Fatal(err)
		}
		for {
			connection, err := listener.Accept()
			if err != nil {
				log.Fatal(err)
			}
			if line, err := bufio.NewReader(connection).ReadString('\n'); err == nil {
				fmt.Fprint(connection, "hello from Go to ", line)
			}
			connection.Close()
		}
	}
	config.ServerName = third
	if os.Getenv("ECH") != "" {
		config.EncryptedClientHelloConfigList = append(binary.BigEndian.AppendUint16(nil, uint16(len(ech))), ech...)
	}
	connection, err := tls.Dial("tcp", "127.0.0.1:"+port, config)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprintln(connection, "GET /")
	io.Copy(io.Discard, connection)
	state := connection.ConnectionState()
	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"version": strings.Replace(tls.VersionName(state.Version), "TLS ", "TLSv", 1),
		"cipher":  tls.CipherSuiteName(state.CipherSuite),
		"alpn":    state.NegotiatedProtocol,
		"ech":     state.ECHAccepted,
	})
}
