package backup

import (
	"context"
	"fmt"
	"time"
)

// Remote is object storage, below one folder. Names have slashes.
type Remote interface {
	// Put writes an object. An existing object of that name has the same content.
	Put(ctx context.Context, name string, content []byte) error
	// Get reads an object; fs.ErrNotExist when there is none.
	Get(ctx context.Context, name string) ([]byte, error)
	// List returns the objects whose names begin with a prefix that ends in a slash, in
	// any order; none when the folder does not exist.
	List(ctx context.Context, prefix string) ([]Object, error)
	// Delete removes an object; none is no error.
	Delete(ctx context.Context, name string) error
}

// Object is one entry of a list.
type Object struct {
	Name string
	Size int64
	Time time.Time // of the last change
}

// DamageError is an object that is missing or has wrong bytes.
type DamageError struct{ Name, Reason string }

func (e *DamageError) Error() string { return fmt.Sprintf("%s %s", e.Name, e.Reason) }
