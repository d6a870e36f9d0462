package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend/local"
	"github.com/enclave-run/enclave/internal/failpoint"
)

// loaded is what an image is called in the daemon, and what it must consist of. Tree
// says which unpacking of the image that was read from.
type loaded struct{ Name, DiffID, Tree string }

// image returns the daemon's id of the image with this manifest digest. One that
// the daemon lacks is loaded, also if it had it before; one of that name with
// another content is not used.
func (d *driver) image(ctx context.Context, digest string) (string, error) {
	d.load.Lock()
	defer d.load.Unlock()
	tree, err := d.tree(digest)
	if err != nil {
		return "", fmt.Errorf("find image %s: %w", digest, err)
	}
	record := filepath.Join(d.dir, "image-"+strings.TrimPrefix(digest, "sha256:")+".json")
	var l loaded
	err = local.Read(record, &l)
	switch {
	case err == nil && l.Tree == tree:
		id, err := d.find(ctx, l)
		if err == nil || !errdefs.IsNotFound(err) {
			return id, err
		}
	case err == nil:
		// What the daemon has is of a tree that the store did not keep.
		if err := os.Remove(record); err != nil {
			return "", err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	archive, err := d.images.Docker(ctx, digest)
	if err != nil {
		return "", fmt.Errorf("find image %s: %w", digest, err)
	}
	l = loaded{archive.Name, archive.DiffID, tree}
	id, err := d.find(ctx, l)
	if errdefs.IsNotFound(err) {
		pr, pw := io.Pipe()
		written := make(chan error, 1)
		go func() {
			err := archive.Write(ctx, pw)
			written <- errors.Join(err, pw.CloseWithError(err))
		}()
		res, lerr := d.api.ImageLoad(ctx, pr)
		if lerr == nil {
			// The answer ends when the image is there, and may hold an error.
			_, lerr = io.Copy(io.Discard, res)
			lerr = errors.Join(lerr, res.Close())
		}
		pr.CloseWithError(io.ErrClosedPipe) // the writer ends if the daemon did
		if err := errors.Join(lerr, <-written); err != nil {
			return "", fmt.Errorf("load image %s into Docker: %w", digest, err)
		}
		id, err = d.find(ctx, l)
	}
	if err != nil {
		return "", err
	}
	if err := failpoint.Hit("docker.image.loaded"); err != nil {
		return "", err
	}
	if err := local.New(record, l); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return id, nil
}

// tree names the unpacking of an image: another one has another name.
func (d *driver) tree(digest string) (string, error) {
	rootfs, err := d.images.Rootfs(digest)
	if err != nil {
		return "", err
	}
	var st unix.Stat_t
	if err := unix.Lstat(rootfs, &st); err != nil {
		return "", fmt.Errorf("look at %s: %w", rootfs, err)
	}
	return fmt.Sprintf("%d:%d:%d", st.Dev, st.Ino, st.Ctim.Nano()), nil
}

// find asks the daemon for an image by its name, and takes it only if it is what
// this program would load: the one layer, and nothing that Docker adds to a container
// of it. A check of its health would run as root beside the guest, a variable change
// what the guest runs, and a volume be a disk without an end.
func (d *driver) find(ctx context.Context, l loaded) (string, error) {
	have, err := d.api.ImageInspect(ctx, l.Name)
	if err != nil {
		return "", fmt.Errorf("look for image %s in Docker: %w", l.Name, err)
	}
	c := have.Config
	adds := c != nil && (c.Healthcheck != nil || len(c.Env)+len(c.Volumes)+len(c.OnBuild) > 0)
	if adds || !slices.Equal(have.RootFS.Layers, []string{l.DiffID}) {
		return "", fmt.Errorf("somebody has given the name %s to another image: docker image rm %s", l.Name, l.Name)
	}
	return have.ID, nil
}

// placeEtc copies those files of the image that Docker would replace.
func placeEtc(s *local.Sandbox, rootfs string) error {
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, n := range etcFiles {
		content, err := root.ReadFile("etc/" + n)
		if err != nil {
			return fmt.Errorf("copy the image's %s: %w", n, err)
		}
		name := s.Path(etcDir, n)
		if err := errors.Join(os.WriteFile(name, content, 0o644), os.Chmod(name, 0o644)); err != nil {
			return err
		}
	}
	return nil
}
