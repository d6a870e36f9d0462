package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"unicode/utf8"
)

const depth = 8

func TestOnlyWhatAllParsersReadAlikePasses(t *testing.T) {
	for text, want := range map[string]bool{
		`null`: true, ` true `: true, `"é\ud83d\ude00"`: true, `-0.5e-3`: true, `[]`: true, `{"a":{"b":[1,{}]},"b":1}`: true,
		`[[[[[[[[]]]]]]]]`: true, `[[[[[[[[[]]]]]]]]]`: false,
		strings.Repeat("9", 300): true, strings.Repeat("9", 5001): false, `1e999`: false, `-1e999`: false, `1e-999`: true,
		`{"a":1,"a":2}`: false, `{"a":1,"\u0061":2}`: false, `"\ud800"`: false, `"\udc00\ud800"`: false, "\"\xff\"": false,
		``: false, `{`: false, `1 2`: false, `01`: false, `+1`: false, `.5`: false, `1.`: false, `'a'`: false, `NaN`: false, `[1,]`: false, `{"a":1,}`: false,
		"\"\n\"": false, `"\x"`: false, `{a:1}`: false, `/**/1`: false, "\ufeff1": false, `nulL`: false, `truex`: false,
	} {
		if err := Check([]byte(text), depth); (err == nil) != want {
			t.Errorf("%.60q: %v", text, err)
		}
	}
}

// FuzzCheck has encoding/json say what is JSON at all, and walks its tokens for what
// it tolerates.
func FuzzCheck(f *testing.F) {
	for _, s := range []string{`{"a":[1,"\ud83d\ude00",null]}`, `{"a":1,"a":2}`, `"\ud800"`, `1e400`, "\"\xff\"", `[[[[[[[[[]]]]]]]]]`, `{"":{"":1}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if err, want := Check(text, depth), accepted(text); (err == nil) != want {
			t.Errorf("%q: %v, want %v", text, err, want)
		}
	})
}

func accepted(text []byte) bool {
	if !utf8.Valid(text) || !json.Valid(text) || halfPair(text) {
		return false
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var names []map[string]bool // of each open object; nil for an array
	var isName []bool
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return true
		}
		if err != nil {
			return false
		}
		top := len(names) - 1
		if s, ok := tok.(string); ok && top >= 0 && names[top] != nil && isName[top] {
			if names[top][s] {
				return false
			}
			names[top][s], isName[top] = true, false
			continue
		}
		switch v := tok.(type) {
		case json.Delim:
			switch v {
			case '{':
				names, isName = append(names, map[string]bool{}), append(isName, true)
			case '[':
				names, isName = append(names, nil), append(isName, false)
			default:
				names, isName = names[:top], isName[:top]
			}
			if len(names) > depth {
				return false
			}
			if v == '{' || v == '[' {
				continue
			}
		case json.Number:
			if n, _ := v.Float64(); math.IsInf(n, 0) || len(v) > MaxNumber {
				return false
			}
		}
		if top = len(names) - 1; top >= 0 && names[top] != nil {
			isName[top] = true
		}
	}
}

// halfPair reports whether an escape of a surrogate stands alone, for which
// encoding/json reads U+FFFD.
func halfPair(text []byte) bool {
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			continue
		}
		i++
		if text[i] != 'u' {
			continue
		}
		var high, low rune
		high = unit(text[i+1:])
		i += 4
		switch {
		case high >= 0xdc00 && high < 0xe000:
			return true
		case high >= 0xd800 && high < 0xdc00:
			if i+6 >= len(text) || text[i+1] != '\\' || text[i+2] != 'u' {
				return true
			}
			if low = unit(text[i+3:]); low < 0xdc00 || low >= 0xe000 {
				return true
			}
			i += 6
		}
	}
	return false
}

func unit(hex []byte) (u rune) {
	for _, c := range hex[:4] {
		u = u<<4 | rune(strings.IndexByte("0123456789abcdef", c|0x20))
	}
	return u
}
