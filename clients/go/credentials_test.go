package gateway_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	grpcpeer "google.golang.org/grpc/peer"

	gateway "github.com/thingspace-gateway/thingspace-gateway/clients/go"
)

// authority signs certificates, and writes them into a directory.
type authority struct {
	directory   string
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{directory: t.TempDir()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}
	a.certificate, a.key = a.write(t, "ca", template)
	return a
}

// write writes a certificate NAME.pem and its key NAME.key.
func (a *authority) write(t *testing.T, name string, template *x509.Certificate) (
	*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template.Subject = pkix.Name{CommonName: name}
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = time.Now().Add(time.Hour)
	issuer, issuerKey := a.certificate, a.key
	if issuer == nil {
		issuer, issuerKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, &key.PublicKey, issuerKey)
	check(t, err)
	certificate, err := x509.ParseCertificate(der)
	check(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	check(t, err)
	a.writePEM(t, name+".pem", "CERTIFICATE", der)
	a.writePEM(t, name+".key", "PRIVATE KEY", pkcs8)
	return certificate, key
}

func (a *authority) writePEM(t *testing.T, name, kind string, der []byte) {
	t.Helper()
	content := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	check(t, os.WriteFile(a.file(name), content, 0o600))
}

func (a *authority) file(name string) string {
	return filepath.Join(a.directory, name)
}

// writeClient writes client.pem and client.key.
func (a *authority) writeClient(t *testing.T, serial int64) {
	a.write(t, "client", &x509.Certificate{
		SerialNumber: big.NewInt(serial),
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

// server returns the credentials of a server on 127.0.0.1 that requires client certificates.
func (a *authority) server(t *testing.T) grpc.ServerOption {
	a.write(t, "server", &x509.Certificate{
		SerialNumber: big.NewInt(2), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	pair, err := tls.LoadX509KeyPair(a.file("server.pem"), a.file("server.key"))
	check(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(a.certificate)
	return grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{pair},
		ClientCAs:    pool,
		ClientAuth:   tls.RequireAndVerifyClientCert,
	}))
}

// whoami answers an order with the token and the serial number of the certificate.
func whoami(ctx context.Context, _ int, _ *downloadRequest) (string, error) {
	sent, _ := metadata.FromIncomingContext(ctx)
	serial := "none"
	caller, _ := grpcpeer.FromContext(ctx)
	if info, ok := caller.AuthInfo.(credentials.TLSInfo); ok {
		serial = info.State.PeerCertificates[0].SerialNumber.String()
	}
	return fmt.Sprint(sent.Get("authorization"), " ", serial), nil
}

func TestRenewedCertificatesAndTokensAreUsed(t *testing.T) {
	authority := newAuthority(t)
	peer := &peer{order: whoami}
	address := peer.start(t, authority.server(t))
	authority.writeClient(t, 101)
	token := filepath.Join(t.TempDir(), "token")
	check(t, os.WriteFile(token, []byte(" \tfirst \n"), 0o600))
	creds := gateway.TLS(gateway.TLSFiles{
		CA:   authority.file("ca.pem"),
		Cert: authority.file("client.pem"),
		Key:  authority.file("client.key"),
	}).WithTokenFile(token)
	client, err := gateway.Connect(address, creds, nil)
	check(t, err)
	defer client.Close()
	ordered, err := client.Order(contextOf(t), order("a key", good))
	check(t, err)
	equal(t, ordered.RequestID, "[Bearer first] 101")

	check(t, os.WriteFile(token, []byte("second"), 0o600))
	authority.writeClient(t, 102)
	peer.listener.cut()
	ordered, err = client.Order(contextOf(t), order("a key", good))
	check(t, err)
	equal(t, ordered.RequestID, "[Bearer second] 102")
}

func TestAnErrorOfATokenFileDoesNotContainTheToken(t *testing.T) {
	peer := &peer{order: whoami}
	address := peer.start(t)
	file := filepath.Join(t.TempDir(), "token")
	client, err := gateway.Connect(address, gateway.Insecure().WithTokenFile(file), nil)
	check(t, err)
	defer client.Close()
	for content, problem := range map[string]string{
		"":              "cannot read the token file",
		" \n":           "is empty",
		"secret\nother": "a character that a token cannot have",
	} {
		if content != "" {
			check(t, os.WriteFile(file, []byte(content), 0o600))
		}
		_, err := client.Order(contextOf(t), order("a key", good))
		equal(t, gateway.Explain(err).Code, codes.Unauthenticated)
		if !strings.Contains(err.Error(), problem) || strings.Contains(err.Error(), "secret") {
			t.Fatal(err)
		}
		_ = os.Remove(file)
	}
	equal(t, peer.placed(), 0)
}

func TestATokenIsSentWithoutTLSOnlyOnThisMachine(t *testing.T) {
	creds := gateway.Insecure().WithTokenFile("token")
	for target, allowed := range map[string]bool{
		"127.0.0.1:50051":                true,
		"127.1.2.3:50051":                true,
		"localhost:50051":                true,
		"[::1]:50051":                    true,
		"dns:///localhost:50051":         true,
		"dns:localhost:50051":            true,
		"passthrough:///127.0.0.1:50051": true,
		"unix:///run/gateway.sock":       true,
		"gateway.example.com:50051":      false,
		"10.0.0.1:50051":                 false,
		"0.0.0.0:50051":                  false,
		"dns:///gateway:50051":           false,
		"dns://10.0.0.1/localhost:50051": false,
		"localhost.example.com:50051":    false,
		"127.0.0.1.example.com:50051":    false,
		"passthrough:///10.0.0.1:50051":  false,
	} {
		for _, risk := range []bool{false, true} {
			options := &gateway.Options{AllowTokenOverPlaintext: risk}
			client, err := gateway.Connect(target, creds, options)
			if (err == nil) != (allowed || risk) {
				t.Errorf("%s: %v", target, err)
			}
			if err == nil {
				check(t, client.Close())
				check(t, client.Close())
			}
		}
	}
}

func TestWrongFilesAreErrorsOfConnect(t *testing.T) {
	authority := newAuthority(t)
	authority.writeClient(t, 3)
	authority.write(t, "other", &x509.Certificate{SerialNumber: big.NewInt(4)})
	client, ca, missing := authority.file("client.pem"), authority.file("ca.pem"), authority.file("none")
	for _, files := range []gateway.TLSFiles{
		{CA: missing},
		{CA: authority.file("ca.key")},
		{CA: ca, Cert: client},
		{CA: ca, Key: authority.file("client.key")},
		{CA: ca, Cert: client, Key: missing},
		{CA: ca, Cert: client, Key: authority.file("other.key")},
	} {
		if _, err := gateway.Connect("127.0.0.1:1", gateway.TLS(files), nil); err == nil {
			t.Errorf("%+v", files)
		}
	}
}
