package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// TokenStore keeps the token of each watched request, so that a later process continues the watch:
// see [WatchOptions]. A store may be used by several watches at once.
type TokenStore interface {
	// Load returns the token of a request, or "" if there is none.
	Load(ctx context.Context, account, requestID string) (string, error)

	// Save stores the token of a request in place of an earlier one. When it returns, the token is
	// durable.
	Save(ctx context.Context, account, requestID, token string) error

	// Delete deletes the token of a request, if there is one.
	Delete(ctx context.Context, account, requestID string) error
}

// FileTokenStore is a [TokenStore] with a file for each request. The name of a file is a hash, so
// that no id can name another file. Only one process should watch a request with the same directory.
type FileTokenStore struct {
	// Directory is where the files are. It is created if it does not exist.
	Directory string
}

// Load implements [TokenStore].
func (s FileTokenStore) Load(_ context.Context, account, requestID string) (string, error) {
	content, err := os.ReadFile(s.path(account, requestID))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("gateway: cannot load a resume token: %w", err)
	}
	return string(content), nil
}

// Save implements [TokenStore]. It replaces the file in one step, and syncs file and directory.
func (s FileTokenStore) Save(_ context.Context, account, requestID, token string) error {
	if err := s.save(s.path(account, requestID), token); err != nil {
		return fmt.Errorf("gateway: cannot save a resume token: %w", err)
	}
	return nil
}

func (s FileTokenStore) save(path, token string) error {
	if err := os.MkdirAll(s.Directory, 0o700); err != nil {
		return err
	}
	file, err := os.CreateTemp(s.Directory, "new-")
	if err != nil {
		return err
	}
	_, err = file.WriteString(token)
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	return syncDirectory(s.Directory)
}

// Delete implements [TokenStore].
func (s FileTokenStore) Delete(_ context.Context, account, requestID string) error {
	err := os.Remove(s.path(account, requestID))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("gateway: cannot delete a resume token: %w", err)
	}
	return nil
}

func (s FileTokenStore) path(account, requestID string) string {
	// Neither an account nor an id contains a slash.
	hash := sha256.Sum256([]byte(account + "/" + requestID))
	return filepath.Join(s.Directory, hex.EncodeToString(hash[:])+".token")
}

// syncDirectory makes the names in a directory durable. Windows cannot do that.
func syncDirectory(path string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	directory, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(directory.Sync(), directory.Close())
}

// noTokens is a store that keeps nothing.
type noTokens struct{}

func (noTokens) Load(context.Context, string, string) (string, error) { return "", nil }
func (noTokens) Save(context.Context, string, string, string) error   { return nil }
func (noTokens) Delete(context.Context, string, string) error         { return nil }
