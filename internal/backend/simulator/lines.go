package simulator

import (
	"errors"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/enclave-run/enclave/internal/wire"
)

// What a model reads is bounded, whatever the code says.
const (
	maxLines     = 10_000  // lines of code
	maxActions   = 1_000   // things a model does that are seen from outside
	maxStatement = 1 << 20 // bytes of a line that is read; a longer one states nothing
	maxLine      = 1 << 16 // the same, of Python with what is known of its parts
	maxRead      = 2 << 20 // bytes of Python that are gone through, repeats included
	maxDepth     = 16      // functions of the code's own in each other
)

// errTooMuch unwinds a model that would go beyond its bounds.
var errTooMuch = errors.New("the code is more than can be modelled")

// exit unwinds a model with an exit status.
type exit struct{ code int }

func (e exit) Error() string { return "exit " + strconv.Itoa(e.code) }

// A fact is a form of a line, or of a part of it, and what that says.
type fact[T any] struct {
	form func() *regexp.Regexp
	says T
}

// lazily compiles form when it is first asked for: this package is part of every
// command, and most commands model nothing.
func lazily(form string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(form) })
}

func of[T any](form string, says T) fact[T] { return fact[T]{lazily(form), says} }

// act does what the facts say of a line, until one ends it.
func act[M any](m M, line string, facts []fact[func(M, []string) error]) error {
	for _, f := range facts {
		for _, g := range f.form().FindAllStringSubmatch(line, 16) {
			if err := f.says(m, g); err != nil {
				return err
			}
		}
	}
	return nil
}

// runLines models code line by line.
func runLines(p *process, code string, facts []fact[func(*process, []string) error]) int {
	lines := 0
	for l := range strings.Lines(code) {
		if lines++; lines > maxLines {
			return p.status(errTooMuch)
		}
		l = strings.TrimSpace(l)
		if len(l) > maxStatement || strings.HasPrefix(l, "#") || strings.HasPrefix(l, "//") {
			continue
		}
		if err := errors.Join(p.running(), act(p, l, facts)); err != nil {
			return p.status(err)
		}
	}
	return 0
}

func bomb(p *process, _ []string) error { return p.bomb() }
func burn(p *process, _ []string) error { return p.burn() }

func exits(p *process, g []string) error {
	n, _ := strconv.Atoi(g[1]) // nothing is 0
	return exit{n & 0xff}
}

const webAddress = `(https?://[^\s"'` + "`" + `<>|;)\\]+)`

var bash = []fact[func(*process, []string) error]{
	of(`\S+\s*\(\)\s*\{\s*\S+\s*\|\s*\S+\s*&\s*;?\s*\}\s*;`, bomb),
	of(`while\s+(?:true|:)\s*;\s*do\s*(?:true|:)?\s*;?\s*done`, burn),
	of(`^sleep\s+infinity\b`, func(p *process, _ []string) error { return p.pause(seconds(1 << 30)) }),
	of(`^sleep\s+(\d+(?:\.\d+)?)\b`, func(p *process, g []string) error { return p.pause(seconds(float(g[1]))) }),
	of(`enclave-result\s+(?:'([^']*)'|"((?:[^"\\]|\\.)*)"|(\S+))`, func(p *process, g []string) error {
		err := p.give(strings.ReplaceAll(g[1]+g[2]+g[3], `\"`, `"`))
		if err != nil && !errors.Is(err, errEnded) {
			return p.print(wire.Stderr, "enclave-result: "+err.Error()+"\n")
		}
		return err
	}),
	of(`^(curl|wget) (.*)$`, func(p *process, g []string) error {
		return p.fetchAll(g[2], func(err error) error { return p.print(wire.Stderr, g[1]+": "+err.Error()+"\n") })
	}),
	of(`^(echo|printf)\s+(-n\s+)?(?:'([^']*)'|"([^"$`+"`"+`]*)"|([\w ./:,=+-]*))\s*(>&2|1>&2)?$`, func(p *process, g []string) error {
		text, kind := g[3]+g[4]+g[5], wire.Stdout
		if g[1] == "echo" && g[2] == "" {
			text += "\n"
		}
		if g[6] != "" {
			kind = wire.Stderr
		}
		return p.print(kind, text)
	}),
	of(`^false$`, func(*process, []string) error { return exit{1} }),
	of(`(?:^|[;&|]\s*)exit(?:\s+(\d{1,3}))?\s*$`, exits),
}

var (
	webAddresses = lazily(webAddress)
	nodeKey      = lazily(`([{,]\s*)([A-Za-z_$][\w$]*)\s*:`)
)

var node = []fact[func(*process, []string) error]{
	of(`(?:while\s*\(\s*(?:true|1)\s*\)|for\s*\(\s*;\s*;\s*\))\s*(?:\{\s*\}|;)`, burn),
	of(`console\.(?:log|(error))\(\s*(?:'([^'\\]*)'|"([^"\\]*)"|`+"`([^`$\\\\]*)`"+`)\s*\)`, func(p *process, g []string) error {
		kind := wire.Stdout
		if g[1] != "" {
			kind = wire.Stderr
		}
		return p.print(kind, g[2]+g[3]+g[4]+"\n")
	}),
	of(`^.*(?:fetch|\.get|\.request)\(.*$`, func(p *process, g []string) error {
		return p.fetchAll(g[0], func(err error) error {
			if strings.Contains(g[0], "catch") {
				return nil
			}
			return errors.Join(p.print(wire.Stderr, "TypeError: fetch failed: "+err.Error()+"\n"), exit{1})
		})
	}),
	of(`enclave\.result\((.*)\)\s*;?\s*$`, func(p *process, g []string) error {
		json := nodeKey().ReplaceAllString(strings.ReplaceAll(g[1], "'", `"`), `$1"$2":`)
		if err := p.give(json); errors.Is(err, errEnded) {
			return err
		} // another error means that it is no literal, whose value is not known
		return nil
	}),
	of(`^throw\b`, func(p *process, _ []string) error {
		return errors.Join(p.print(wire.Stderr, "Uncaught\n"), exit{1})
	}),
	of(`process\.exit\((\d{0,3})\)`, exits),
}
