package gateway_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	gateway "github.com/thingspace-gateway/thingspace-gateway/clients/go"
)

func TestAFileKeepsTheTokenOfEachRequest(t *testing.T) {
	ctx := context.Background()
	directory := filepath.Join(t.TempDir(), "new")
	store := gateway.FileTokenStore{Directory: directory}
	ids := []string{"a", "../a", "/etc/passwd", "", "."}
	check(t, store.Delete(ctx, account, "a"))
	for _, id := range ids {
		token, err := store.Load(ctx, account, id)
		check(t, err)
		equal(t, token, "")
		check(t, store.Save(ctx, account, id, "first"))
		check(t, store.Save(ctx, account, id, "token of "+id))
	}
	files, err := os.ReadDir(directory)
	check(t, err)
	equal(t, len(files), len(ids))
	for _, id := range ids {
		token, err := gateway.FileTokenStore{Directory: directory}.Load(ctx, account, id)
		check(t, err)
		equal(t, token, "token of "+id)
		check(t, store.Delete(ctx, account, id))
	}
	files, err = os.ReadDir(directory)
	check(t, err)
	equal(t, len(files), 0)
}

func TestATokenThatCannotBeSavedIsAnError(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	check(t, os.WriteFile(file, nil, 0o600))
	err := gateway.FileTokenStore{Directory: file}.Save(context.Background(), account, "a", "token")
	if err == nil {
		t.Fatal("the directory is a file")
	}
}
