package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"time"

	_ "github.com/rclone/rclone/backend/azureblob"
	_ "github.com/rclone/rclone/backend/crypt"
	_ "github.com/rclone/rclone/backend/googlecloudstorage"
	_ "github.com/rclone/rclone/backend/local"
	_ "github.com/rclone/rclone/backend/s3"
	_ "github.com/rclone/rclone/backend/sftp"
	"github.com/rclone/rclone/fs"
	"github.com/rclone/rclone/fs/config/configfile"
	"github.com/rclone/rclone/fs/object"
	"github.com/rclone/rclone/fs/walk"

	"github.com/stemedb/stemedb/server/internal/backup"
)

// remote is object storage that rclone reaches.
type remote struct{ fs fs.Fs }

// openRemote opens a remote in rclone's form, such as gcs:bucket/folder or
// /var/backups. Its section is in the file that RCLONE_CONFIG names, or in variables
// such as RCLONE_CONFIG_GCS_TYPE.
func openRemote(ctx context.Context, path string) (backup.Remote, error) {
	fs.GetConfig(ctx).LogLevel = fs.LogLevelWarning
	configfile.Install()
	f, err := fs.NewFs(ctx, path)
	if errors.Is(err, fs.ErrorIsFile) {
		return nil, fmt.Errorf("%s is a file; name a folder", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open the remote %s: %w", path, err)
	}
	return &remote{f}, nil
}

const (
	attempts = 4
	retryIn  = time.Second
)

// again calls do until it succeeds, its error is final, or no attempts are left.
func again(ctx context.Context, do func() error) (err error) {
	wait := retryIn
	for n := 1; ; n++ {
		if err = do(); err == nil || n == attempts || final(err) || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
		wait *= 2
	}
}

func final(err error) bool {
	return errors.Is(err, iofs.ErrNotExist) || errors.Is(err, fs.ErrorPermissionDenied)
}

func (r *remote) Put(ctx context.Context, name string, content []byte) error {
	return again(ctx, func() error {
		info := object.NewStaticObjectInfo(name, time.Now(), int64(len(content)), true, nil, r.fs)
		_, err := r.fs.Put(ctx, bytes.NewReader(content), info)
		return err
	})
}

func (r *remote) Get(ctx context.Context, name string) (content []byte, err error) {
	err = again(ctx, func() error {
		o, err := r.object(ctx, name)
		if err != nil {
			return err
		}
		body, err := o.Open(ctx)
		if err != nil {
			return err
		}
		content, err = io.ReadAll(body)
		return errors.Join(err, body.Close())
	})
	return content, err
}

func (r *remote) object(ctx context.Context, name string) (fs.Object, error) {
	o, err := r.fs.NewObject(ctx, name)
	if errors.Is(err, fs.ErrorObjectNotFound) || errors.Is(err, fs.ErrorDirNotFound) {
		return nil, iofs.ErrNotExist
	}
	return o, err
}

func (r *remote) List(ctx context.Context, prefix string) (all []backup.Object, err error) {
	err = again(ctx, func() error {
		all = nil
		// A folder that is not there yet is no error; walk would log one.
		if _, err := r.fs.List(ctx, prefix[:len(prefix)-1]); errors.Is(err, fs.ErrorDirNotFound) {
			return nil
		}
		err := walk.ListR(ctx, r.fs, prefix[:len(prefix)-1], true, -1, walk.ListObjects, func(entries fs.DirEntries) error {
			for _, e := range entries {
				all = append(all, backup.Object{Name: e.Remote(), Size: e.Size(), Time: e.ModTime(ctx)})
			}
			return nil
		})
		return err
	})
	return all, err
}

func (r *remote) Delete(ctx context.Context, name string) error {
	return again(ctx, func() error {
		o, err := r.object(ctx, name)
		if errors.Is(err, iofs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return o.Remove(ctx)
	})
}
