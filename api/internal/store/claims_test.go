package store_test

import (
	"reflect"
	"testing"

	"github.com/google/uuid"
)

// What a claim is answered with is its row, though most of it is not read back.
func TestAnInsertAnswersTheRow(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	n := newSandbox(t, uuid.New())
	n.IdempotencyKey, n.RequestHash, n.TTLSeconds, n.HardTTLSeconds = "k", []byte("hash"), 60, 120
	made, err := s.InsertSandbox(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	read, err := s.Sandbox(t.Context(), n.TeamID, n.ID)
	if err != nil {
		t.Fatal(err)
	}
	made.Config, read.Config = nil, nil // the same JSON, with other spaces
	if !reflect.DeepEqual(made, read) {
		t.Errorf("answered %+v\nis       %+v", made, read)
	}
}
