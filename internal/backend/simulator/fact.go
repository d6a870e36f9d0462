package simulator

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"github.com/enclave-run/enclave/internal/wire"
)

// The literals of a line, with the numbers of strings in their quotes. A letter
// before them says what it is: b bytes, e the text of an exception, f an open
// file, h a server, t a thread.
const (
	str   = `"\d+"`
	num   = `-?\d+(?:\.\d+)?`
	one   = `(?:[a-z]?` + str + `(?: *\* *\d+)?|` + num + `|true|false|null)`
	item  = `(?:\( *` + one + `(?: *, *` + one + `)+ *,? *\)|` + one + `)`
	ports = `(?:6553[0-5]|655[0-2]\d|65[0-4]\d\d|6[0-4]\d{3}|[1-5]\d{4}|[1-9]\d{0,3})`
	group = `[(\[{](?:[^()\[\]{}]|[(\[{][^()\[\]{}]*[)\]}])*[)\]}]`
	inner = `(?:[^()\[\]{}]|` + group + `)*` // between the brackets of a call
)

var (
	word     = lazily(`[\pL_][\pL\pN_]*`)
	whole    = lazily(`^ *` + item + ` *$`)
	anItem   = lazily(item)
	anArg    = lazily(`(?:[^()\[\]{},]|` + group + `)+`)
	strs     = lazily(str)
	plain    = lazily(`^(?:-?(?:0|[1-9]\d{0,9})\.(?:0|\d{0,3}[1-9])|-?[1-9]\d{0,17}|0)$`) // print writes it so
	begins   = lazily(`^ *(` + str + `) *\+`)
	literals = lazily(`^ *(?:([a-z]?)(` + str + `)(?: *\* *(\d+))?|(` + num + `|true|false|null)) *$`)
	names    = lazily(`type\(\w+\)\.__name__|\.?[\pL_][\pL\pN_]*(?: *[=(]|` + str + `)?`)
	calls    = lazily(`[.\w]+\(`)
	called   = lazily(`^(` + inner + `)\)`)
	option   = lazily(`^ *(sep|end|file|flush) *= *(.*?) *$`)
	trailing = lazily(str + `|, *[\]}]`)
	joined   = lazily(`([*%] *|\w)?(` + str + `(?: *\+? *` + str + `)+)( *[*%.\[])?`)
	numbers  = lazily(`(^|[(\[{,:=] *)(\d+) *(\*|<<|\*\*|\+) *(\d+)( *[)\]},:]| *$)`)
	sumForm  = lazily(`\bsum\((?:(\w+) \* (\w+) for (\w+) in )?range\((\d{1,6})\)\)`)
	strForm  = lazily(`\bstr\( *(?:e?(` + str + `)|(-?\d+)) *\)`)
	server   = lazily(`[\w.]*\bHTTP(S?)Connection\( *(` + str + `)(?: *, *(\d+))?` + inner + `\)`)
	opened   = lazily(`(^|[^.\w])(?:io\.)?open\( *(` + str + `)(?: *, *(?:mode=)?(` + str + `))?` + inner + `\)`)
	reads    = lazily(`\bf(` + str + `)\.read\(\)`)
	openEnd  = lazily(`[{%].*`)
	private  = lazily(`^/etc/g?shadow$|^/root`)
	present  = lazily(`^/etc/(?:passwd|group|hosts|hostname|resolv\.conf)$|^/proc/self/|^/dev/`)
)

// forms are other ways to write a part of a line.
var forms = []fact[string]{
	of(`(^|[(\[{,:=*] *)\( *(`+one+`) *\)`, `$1$2`),
	of(`\b(?:bytearray|bytes|urandom)\( *(\d+) *\)`, `b"0" * $1`),
	of(`[\w.]*\bRequest\( *(?:url=)?(`+str+`)`+inner+`\)`, `$1`),
	of(`[\w.]*\b(?:Thread|Process)\(`+inner+`\)`, `t"0"`),
}

// facts are what a line does.
var facts = []fact[func(*script, []string) error]{
	of(str+` *\* *\d+`, func(m *script, g []string) error {
		if t, ok := m.literal(g[0]); ok && t.size() > m.limits().Memory-m.memory {
			return m.keep(t.size())
		}
		return nil
	}),
	of(`\bfork(?:pty)?\(\)|\bt"0"\.start\(\)|\bstart_new_thread\(`, func(m *script, _ []string) error { return m.fork() }),
	of(`\bos\.wait(?:pid)?\(|\bt"0"\.join\(`, func(m *script, _ []string) error { m.wait(); return nil }),
	of(`\b(?:subprocess\.(?:run|call|check_call|check_output|(Popen))|os\.system)\( *(`+str+`|\[[^\]]*\])`, (*script).shell),
	of(`\bsleep\( *(\d+(?:\.\d+)?(?:e\d)?) *\)`, func(m *script, g []string) error {
		m.waits++
		return m.pause(seconds(float(g[1])))
	}),
	of(`(?:(\burlopen)\(|[\w)]\.(?:get|post|put|patch|delete|head|options)\(|\.request\( *`+str+` *,) *(?:url *= *)?(`+str+`) *(.)`, (*script).get),
	of(`\bh(`+str+`)\.(?:request|connect)\(`, func(m *script, g []string) error { return m.reaches(m.fetch(m.text(g[1])), "") }),
	of(`\b(?:create_connection|connect(_ex)?)\( *\( *(`+str+`) *, *(`+ports+`)\b`, func(m *script, g []string) error {
		err := m.reaches(m.dial(m.text(g[2]), uint16(float(g[3])), nil), "")
		if _, refused := err.(*raised); refused && g[1] != "" {
			return nil
		}
		return err
	}),
	of(`\.sendto\( *(?:b?(`+str+`))?.*, *\( *(`+str+`) *, *(`+ports+`) *\) *\)`, func(m *script, g []string) error {
		return m.reaches(m.datagram(m.text(g[2]), uint16(float(g[3])), []byte(m.text(g[1]))), "")
	}),
	of(`\b(?:getaddrinfo|gethostbyname(?:_ex)?)\( *(`+str+`)`, func(m *script, g []string) error { return m.reaches(m.lookup(m.text(g[1])), "socket.gaierror") }),
	of(`\.(?:append|extend|add)\((.*)\)`, func(m *script, g []string) error { return m.grows(g[1]) }),
	of(`\bf(`+str+`)\.write\( *(`+one+`) *\)`, func(m *script, g []string) error {
		t, _ := m.literal(g[2])
		return errors.Join(m.spend(), m.store(m.text(g[1]), []byte(t.first(maxStatement)), t.size()))
	}),
	of(`\b(?:sys\.std(?:out|(err))(?:\.buffer)?\.write\(|os\.write\( *(?:1|(2)) *,) *(`+one+`) *\)`, func(m *script, g []string) error {
		t, _ := m.literal(g[3])
		return m.says(g[1]+g[2] != "", t)
	}),
	of(`(?:^|[^.\w])print ?\((`+inner+`)\)$`, func(m *script, g []string) error { return m.prints(anArg().FindAllString(g[1], -1)) }),
	of(`\benclave\.result\( *(?:value *=)? *(.*)\)$`, func(m *script, g []string) error { return m.results(g[1]) }),
	of(`(?:^|[^.\w])(?:sys\.exit|os\._exit|exit|quit)\((.*?)\)$`, func(m *script, g []string) error { return m.exits(g[1]) }),
}

// line puts into l what is known of its parts, and does what it says then.
func (m *script) line(l string) (string, error) {
	replace := func(re *regexp.Regexp, with func([]string) string) {
		l = re.ReplaceAllStringFunc(l, func(part string) string { return with(re.FindStringSubmatch(part)) })
	}
	size := len(l)
	replace(names(), func(g []string) string {
		if size += len(m.known[g[0]]); size > maxLine {
			return "?"
		}
		return cmp.Or(m.known[g[0]], g[0])
	})
	var failed error
	for before := ""; l != before && len(l) <= maxLine && m.read < maxRead && failed == nil; m.read += len(l) {
		before = l
		for _, f := range forms {
			l = f.form().ReplaceAllString(l, f.says)
		}
		replace(numbers(), computed)
		replace(sumForm(), summed)
		replace(strForm(), func(g []string) string { return m.number(m.text(g[1]) + g[2]) })
		replace(joined(), func(g []string) string {
			if g[1]+g[3] != "" {
				return g[0]
			}
			return m.number(m.words(g[2], ""))
		})
		replace(server(), func(g []string) string {
			return "h" + m.number("http"+strings.ToLower(g[1])+"://"+m.text(g[2])+":"+g[3]+"/")
		})
		replace(opened(), func(g []string) string {
			s, err := m.open(m.text(g[2]), m.text(g[3]))
			failed = errors.Join(failed, err)
			return g[1] + s
		})
		replace(reads(), func(g []string) string {
			s, _ := m.guest.files.content(m.text(g[1]))
			return m.number(s)
		})
	}
	done, _, _ := strings.Cut(l, "lambda")
	for _, at := range calls().FindAllStringIndex(done, 16) {
		start, own := m.defs[done[at[0]:at[1]-1]]
		if g := called().FindStringSubmatch(done[at[1]:]); own && g != nil && failed == nil {
			failed = m.function(start, anArg().FindAllString(g[1], -1))
		}
	}
	if failed == nil {
		failed = act(m, done, facts)
	}
	return l, failed
}

// computed is what two numbers make, and summed are two sums, since a workload
// that is to be trusted with an answer needs one. Nothing else is.
func computed(g []string) string {
	x, y := float(g[2]), float(g[4])
	v := map[string]float64{"+": x + y, "*": x * y, "<<": x * math.Exp2(y), "**": math.Pow(x, y)}[g[3]]
	if v >= 1<<53 {
		return "?"
	}
	return g[1] + strconv.FormatFloat(v, 'f', 0, 64) + g[5]
}

func summed(g []string) string {
	n, _ := strconv.Atoi(g[4])
	switch {
	case g[1] == "":
		return strconv.Itoa(n * (n - 1) / 2)
	case g[1] == g[2] && g[2] == g[3]:
		return strconv.Itoa((n - 1) * n * (2*n - 1) / 6)
	}
	return "?"
}

func float(s string) float64 {
	f, _ := strconv.ParseFloat(s, 64) // the forms have no other
	return f
}

// literal returns what print writes of s, or of bytes what is in them.
func (m *script) literal(s string) (text, bool) {
	g := literals().FindStringSubmatch(s)
	if g == nil || g[1] > "e" || g[4] != "" && g[4][0] <= '9' && !plain().MatchString(g[4]) {
		return text{}, false
	}
	t := text{cmp.Or(map[string]string{"true": "True", "false": "False", "null": "None"}[g[4]], m.text(g[2])+g[4]), 1}
	if g[3] != "" {
		t.n, _ = strconv.ParseInt(g[3], 10, 64) // the most, if it is more
	}
	return t, true
}

// quote returns s as JSON.
func quote(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.Encode(s)
	return strings.TrimSpace(b.String())
}

// number returns what stands for s in a line, and text what a number stands for.
func (m *script) number(s string) string {
	m.read += len(s)
	m.texts = append(m.texts, s)
	return fmt.Sprintf("%q", strconv.Itoa(len(m.texts)-1))
}

func (m *script) text(s string) string {
	if n, err := strconv.Atoi(strings.Trim(s, `"`)); err == nil && n < len(m.texts) {
		return m.texts[n]
	}
	return ""
}

// words returns the strings of s, with sep between them.
func (m *script) words(s, sep string) string {
	var all []string
	for _, w := range strs().FindAllString(s, -1) {
		if m.read += len(m.text(w)); m.read > maxRead {
			return ""
		}
		all = append(all, m.text(w))
	}
	return strings.Join(all, sep)
}

// prints writes what is known of a print's arguments, and nothing at all if
// none is.
func (m *script) prints(args []string) error {
	with, parts, n := map[string]string{"sep": " ", "end": "\n"}, []text(nil), 0
	for _, a := range args {
		t, ok := m.literal(a)
		if g := option().FindStringSubmatch(a); g != nil {
			if with[g[1]] = g[2]; strings.HasSuffix(g[2], `"`) {
				with[g[1]] = m.text(g[2])
			}
		} else if n++; ok && strings.TrimSpace(a)[0] != 'b' {
			parts = append(parts, t)
		}
	}
	stderr, all := with["file"] == "sys.stderr", ""
	if n > 0 && len(parts) == 0 {
		return nil
	}
	if len(parts) == 1 && parts[0].n > 1 {
		return errors.Join(m.says(stderr, parts[0]), m.says(stderr, text{with["end"], 1}))
	}
	for i, t := range parts {
		if i > 0 {
			all += with["sep"]
		}
		all += t.first(maxStatement)
	}
	return m.says(stderr, text{all + with["end"], 1})
}

// says writes t.
func (m *script) says(stderr bool, t text) error {
	kind, i := wire.Stdout, 0
	if stderr {
		kind, i = wire.Stderr, 1
	}
	if err := m.spend(); err != nil || t.size() == 0 {
		return err
	}
	if s := m.said[i]; s.size()+t.size() <= wire.MaxChunk {
		m.said[i] = text{s.first(wire.MaxChunk) + t.first(wire.MaxChunk), 1}
	}
	return m.say(kind, t)
}

// results gives s as the result, if it is known.
func (m *script) results(s string) error {
	if t, ok := m.literal(s); ok && t.n > 1 && s[0] == '"' {
		s = m.number(t.first(wire.MaxResult + 1))
	}
	s = trailing().ReplaceAllStringFunc(s, func(t string) string {
		if t[0] == ',' {
			return t[len(t)-1:]
		}
		return quote(m.text(t))
	})
	var b bytes.Buffer
	if json.Compact(&b, []byte(s)) != nil {
		return nil
	}
	err := m.give(b.String())
	if err != nil && !errors.Is(err, errEnded) {
		return &raised{class: "ValueError", text: err.Error()}
	}
	return err
}

func (m *script) exits(s string) error {
	if t, ok := m.literal(s); ok && strings.HasSuffix(s, `"`) {
		return errors.Join(m.says(true, t), m.says(true, text{"\n", 1}), exit{1})
	}
	return exit{int(float(s)) & 0xff}
}

// grows takes memory for a literal, or something of another size, for good.
func (m *script) grows(s string) error {
	t, _ := m.literal(s)
	return errors.Join(m.spend(), m.keep(max(t.size(), 64)))
}

// open opens a file of /work or /tmp. Of the image's own files the model knows
// which are not for the workload, and which no image has.
func (m *script) open(raw, how string) (string, error) {
	name, err := place(raw)
	_, there := m.guest.files.content(name)
	switch write := strings.ContainsAny(how, "wax+"); {
	case write && err != nil:
		return "?", &raised{class: "OSError", text: "[Errno 30] Read-only file system: '" + raw + "'"}
	case write && !strings.Contains(how, "a"):
		m.guest.files.truncate(name)
		return "f" + m.number(name), m.spend()
	case write || there:
		return "f" + m.number(name), m.spend()
	case private().MatchString(raw):
		return "?", &raised{class: "PermissionError", text: "[Errno 13] Permission denied: '" + raw + "'"}
	case present().MatchString(raw):
		return "?", nil
	}
	return "?", &raised{class: "FileNotFoundError", text: "[Errno 2] No such file or directory: '" + raw + "'"}
}

// shell goes through a command for another program, whose exit status does not
// end this one.
func (m *script) shell(g []string) error {
	if err := m.fork(); err != nil {
		return err
	}
	m.waits++
	err := act(m.process, m.words(g[2], " "), bash)
	if g[1] == "" {
		m.wait()
	}
	if e := (exit{}); errors.As(err, &e) {
		return nil
	}
	return err
}

// get opens a URL. Of one that is put together, what stands before the first
// unknown part counts if the host is in it: else it is another host.
func (m *script) get(g []string) error {
	u, class := m.text(g[2]), "requests.exceptions.ConnectionError"
	if !strings.HasPrefix(u, "http") {
		return nil
	}
	if g[3] != ")" && g[3] != "," {
		u = openEnd().ReplaceAllString(u, "")
		if _, rest, _ := strings.Cut(u, "://"); !strings.ContainsAny(rest, "/?#") {
			return nil
		}
	}
	if g[1] == "urlopen" {
		class = "urllib.error.URLError"
	}
	return m.reaches(m.fetch(u), class)
}

// reaches turns the network's answer into the exception that Python raises.
func (m *script) reaches(err error, class string) error {
	m.waits++
	for is, e := range map[error]raised{
		errNoName:   {class: "socket.gaierror", text: "[Errno -2] Name or service not known"},
		errRefused:  {class: "ConnectionRefusedError", text: "[Errno 111] Connection refused"},
		errTimeout:  {class: "TimeoutError", text: "timed out"},
		errUnparsed: {class: "ValueError", text: "unknown url type"},
	} {
		if errors.Is(err, is) {
			if class == "urllib.error.URLError" {
				e.text = "<urlopen error " + e.text + ">"
			}
			e.class = cmp.Or(class, e.class)
			return &e
		}
	}
	return err
}
