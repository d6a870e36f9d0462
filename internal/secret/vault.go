package secret

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"sync"
)

// ErrExists means that a Vault has a secret of that name.
var ErrExists = errors.New("a secret of this name exists")

// A Vault holds named secrets for as long as a process lives. It gives none
// back. The zero Vault is empty; it must not be copied.
type Vault struct {
	mu     sync.Mutex
	values map[string]Value // guarded by mu
}

// nameForm is what a service's environment variable can be made from.
var nameForm = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)

// Put keeps v under name, which is 1 to 63 of a-z, 0-9 and hyphens and begins
// with a letter. It returns ErrExists rather than replace a secret that someone
// may rely on, and refuses an empty one.
func (v *Vault) Put(name string, value Value) error {
	if !nameForm.MatchString(name) {
		// The name is not repeated: it may be the secret, in the wrong place.
		return errors.New("put secret: a name is 1 to 63 of a-z, 0-9 and hyphens and begins with a letter")
	}
	if len(value.bytes()) == 0 {
		return fmt.Errorf("put secret %s: it is empty", name)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, ok := v.values[name]; ok {
		return fmt.Errorf("put secret %s: %w", name, ErrExists)
	}
	if v.values == nil {
		v.values = map[string]Value{}
	}
	v.values[name] = value
	return nil
}

// Remove forgets the secret called name. Removing what is not there succeeds.
func (v *Vault) Remove(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.values, name)
}

// Names returns the names of what v holds, sorted.
func (v *Vault) Names() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	names := make([]string, 0, len(v.values))
	for n := range v.values {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// Scanner returns a Scanner for what v holds now.
func (v *Vault) Scanner() *Scanner {
	v.mu.Lock()
	defer v.mu.Unlock()
	values := make([]Value, 0, len(v.values))
	for _, x := range v.values {
		values = append(values, x)
	}
	return NewScanner(values...)
}
