package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// Credentials say how a client proves who it is, and how it verifies the gateway. [Insecure] and
// [TLS] return them. They contain names of files, and no secrets.
type Credentials struct {
	tls       *TLSFiles
	tokenFile string
}

// TLSFiles names the PEM files for [TLS]. Each is optional.
type TLSFiles struct {
	// CA has the certificates of the authorities that the gateway's certificate is verified with.
	// [Connect] reads it once. Empty: the authorities of the system.
	CA string

	// Cert and Key are the client certificate and its private key. Both are read again for each new
	// connection, so that a renewed certificate is used.
	Cert, Key string
}

// Insecure returns credentials for a connection without TLS: on this machine, or through a service
// mesh that encrypts it.
func Insecure() Credentials {
	return Credentials{}
}

// TLS returns credentials for a connection with TLS 1.2 or later.
func TLS(files TLSFiles) Credentials {
	return Credentials{tls: &files}
}

// WithTokenFile returns credentials that also send the token in a file with each call. The file is
// read for each call, so that a rotated token is used. White space at its ends is ignored.
func (c Credentials) WithTokenFile(file string) Credentials {
	c.tokenFile = file
	return c
}

func (c Credentials) dialOptions(target string, allowPlaintext bool) ([]grpc.DialOption, error) {
	transport := insecure.NewCredentials()
	if c.tls != nil {
		config, err := c.tls.config()
		if err != nil {
			return nil, err
		}
		transport = credentials.NewTLS(config)
	}
	options := []grpc.DialOption{grpc.WithTransportCredentials(transport)}
	if c.tokenFile != "" {
		if c.tls == nil && !allowPlaintext && !isLoopback(target) {
			return nil, fmt.Errorf("gateway: %s is not on this machine, and a token is not sent "+
				"there without TLS: use TLS, or set AllowTokenOverPlaintext", target)
		}
		token := tokenFile{path: c.tokenFile, requiresTLS: c.tls != nil}
		options = append(options, grpc.WithPerRPCCredentials(token))
	}
	return options, nil
}

func (f TLSFiles) config() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.CA != "" {
		pem, err := os.ReadFile(f.CA)
		if err != nil {
			return nil, fmt.Errorf("gateway: cannot read the CA file: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("gateway: %s has no certificate in PEM format", f.CA)
		}
	}
	if f.Cert == "" && f.Key == "" {
		return config, nil
	}
	if f.Cert == "" || f.Key == "" {
		return nil, errors.New("gateway: a client certificate needs both Cert and Key")
	}
	// Reports wrong files here, because an error of a later handshake only delays calls.
	if _, err := f.pair(); err != nil {
		return nil, err
	}
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return f.pair()
	}
	return config, nil
}

func (f TLSFiles) pair() (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, fmt.Errorf("gateway: cannot use the client certificate: %w", err)
	}
	return &pair, nil
}

// tokenFile sends the token in a file with each call.
type tokenFile struct {
	path        string
	requiresTLS bool
}

// GetRequestMetadata implements [credentials.PerRPCCredentials]. Its errors never contain the token.
func (f tokenFile) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	content, err := os.ReadFile(f.path)
	if err != nil {
		return nil, status.Errorf(codes.Unauthenticated, "cannot read the token file: %v", err)
	}
	token := strings.TrimSpace(string(content))
	if token == "" {
		return nil, status.Errorf(codes.Unauthenticated, "the token file %s is empty", f.path)
	}
	if strings.ContainsFunc(token, func(r rune) bool { return r < ' ' || r > '~' }) {
		return nil, status.Errorf(codes.Unauthenticated,
			"the token file %s has a character that a token cannot have", f.path)
	}
	return map[string]string{"authorization": "Bearer " + token}, nil
}

// RequireTransportSecurity implements [credentials.PerRPCCredentials].
func (f tokenFile) RequireTransportSecurity() bool {
	return f.requiresTLS
}

// isLoopback returns whether a target is certainly on this machine.
func isLoopback(target string) bool {
	address := target
	if parsed, err := url.Parse(target); err == nil {
		switch parsed.Scheme {
		case "unix", "unix-abstract":
			return true
		case "dns", "passthrough":
			if parsed.Host != "" { // A name server that resolves the name.
				return false
			}
			address = strings.TrimPrefix(parsed.Path, "/") + parsed.Opaque
		}
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = strings.Trim(address, "[]")
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
