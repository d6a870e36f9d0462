package simulator

import (
	"errors"
	"regexp"
	"strconv"
	"strings"

	"github.com/enclave-run/enclave/internal/wire"
)

// exit unwinds a model with an exit status.
type exit struct{ code int }

func (e exit) Error() string { return "exit " + strconv.Itoa(e.code) }

// runLines models code line by line. line returns an exit to end it.
func runLines(p *process, code string, line func(*process, string) error) int {
	lines := 0
	for l := range strings.Lines(code) {
		if lines++; lines > maxLines {
			return p.status(errTooMuch)
		}
		if p.running() != nil {
			return 1
		}
		if len(l) > maxStatement {
			continue
		}
		l = strings.TrimSpace(l)
		if l == "" || strings.HasPrefix(l, "#") || strings.HasPrefix(l, "//") {
			continue
		}
		if err := line(p, l); err != nil {
			return p.status(err)
		}
	}
	return 0
}

var (
	urlLiteral  = regexp.MustCompile(`https?://[^\s"'` + "`" + `<>|;)\\]+`)
	echoLiteral = regexp.MustCompile(`^(?:echo|printf)\s+(-n\s+)?(?:'([^']*)'|"([^"$` + "`" + `]*)"|([\w ./:,=+-]*))\s*(>&2|1>&2)?$`)
	exitLiteral = regexp.MustCompile(`(?:^|[;&|]\s*)exit(?:\s+(\d{1,3}))?\s*$`)
	resultArg   = regexp.MustCompile(`enclave-result\s+(?:'([^']*)'|"((?:[^"\\]|\\.)*)"|(\S+))`)
	shellSleep  = regexp.MustCompile(`^sleep\s+(\d+(?:\.\d+)?|infinity)\b`)
	shellLoop   = regexp.MustCompile(`while\s+(?:true|:)\s*;\s*do\s*(?:true|:)?\s*;?\s*done`)
	shellBomb   = regexp.MustCompile(`(\S+)\s*\(\)\s*\{\s*(\S+)\s*\|\s*(\S+)\s*&\s*;?\s*\}\s*;`)

	nodePrint  = regexp.MustCompile(`console\.(log|error)\(\s*(?:'([^'\\]*)'|"([^"\\]*)"|` + "`([^`$\\\\]*)`" + `)\s*\)`)
	nodeExit   = regexp.MustCompile(`process\.exit\((\d{0,3})\)`)
	nodeResult = regexp.MustCompile(`enclave\.result\((.*)\)\s*;?\s*$`)
	nodeKey    = regexp.MustCompile(`([{,]\s*)([A-Za-z_$][\w$]*)\s*:`)
	nodeFetch  = regexp.MustCompile(`(?:fetch|\.get|\.request)\(`)
	nodeLoop   = regexp.MustCompile(`(?:while\s*\(\s*(?:true|1)\s*\)|for\s*\(\s*;\s*;\s*\))\s*(?:\{\s*\}|;)`)
	nodeThrow  = regexp.MustCompile(`^throw\b`)
)

func bashLine(p *process, l string) error {
	switch {
	case shellBomb.MatchString(l):
		return p.bomb()
	case shellLoop.MatchString(l):
		return p.burn()
	}
	if m := shellSleep.FindStringSubmatch(l); m != nil {
		f, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			f = 1 << 30
		}
		return p.pause(seconds(f))
	}
	if m := resultArg.FindStringSubmatch(l); m != nil {
		if err := p.give(strings.ReplaceAll(m[1]+m[2]+m[3], `\"`, `"`)); err != nil && !errors.Is(err, errEnded) && !errors.Is(err, errTooMuch) {
			return p.print(wire.Stderr, "enclave-result: "+err.Error()+"\n")
		} else if err != nil {
			return err
		}
	}
	if strings.HasPrefix(l, "curl ") || strings.HasPrefix(l, "wget ") {
		for _, u := range urlLiteral.FindAllString(l, 16) {
			if err := p.fetch(u); isNetwork(err) {
				name, _, _ := strings.Cut(l, " ")
				if err := p.print(wire.Stderr, name+": "+err.Error()+"\n"); err != nil {
					return err
				}
			} else if err != nil {
				return err
			}
		}
	}
	if m := echoLiteral.FindStringSubmatch(l); m != nil {
		text, kind := m[2]+m[3]+m[4], wire.Stdout
		if m[1] == "" && strings.HasPrefix(l, "echo") {
			text += "\n"
		}
		if m[5] != "" {
			kind = wire.Stderr
		}
		return p.print(kind, text)
	}
	if l == "false" {
		return exit{1}
	}
	return exitOf(exitLiteral.FindStringSubmatch(l))
}

func nodeLine(p *process, l string) error {
	if nodeLoop.MatchString(l) {
		return p.burn()
	}
	for _, m := range nodePrint.FindAllStringSubmatch(l, 16) {
		kind := wire.Stdout
		if m[1] == "error" {
			kind = wire.Stderr
		}
		if err := p.print(kind, m[2]+m[3]+m[4]+"\n"); err != nil {
			return err
		}
	}
	if nodeFetch.MatchString(l) {
		for _, u := range urlLiteral.FindAllString(l, 16) {
			err := p.fetch(u)
			switch {
			case isNetwork(err) && strings.Contains(l, "catch"):
			case isNetwork(err):
				return errors.Join(p.print(wire.Stderr, "TypeError: fetch failed: "+err.Error()+"\n"), exit{1})
			case err != nil:
				return err
			}
		}
	}
	if m := nodeResult.FindStringSubmatch(l); m != nil {
		json := nodeKey.ReplaceAllString(strings.ReplaceAll(m[1], "'", `"`), `$1"$2":`)
		if err := p.give(json); errors.Is(err, errEnded) || errors.Is(err, errTooMuch) {
			return err
		} // another error means that it is no literal, whose value is not known
	}
	if nodeThrow.MatchString(l) {
		return errors.Join(p.print(wire.Stderr, "Uncaught\n"), exit{1})
	}
	return exitOf(nodeExit.FindStringSubmatch(l))
}

func exitOf(m []string) error {
	if m == nil {
		return nil
	}
	n, _ := strconv.Atoi(m[1]) // nothing is 0
	return exit{n & 0xff}
}
