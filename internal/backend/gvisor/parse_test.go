package gvisor

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestExitCodesAreThoseOfAShell(t *testing.T) {
	for script, want := range map[string]int{"exit 0": 0, "exit 7": 7, "exit 255": 255, "kill -9 $$": 137, "kill -15 $$": 143} {
		var ws unix.WaitStatus
		cmd := exec.Command("/bin/sh", "-c", script)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Wait4(cmd.Process.Pid, &ws, 0, nil); err != nil {
			t.Fatal(err)
		}
		cmd.Process.Release()
		if got := exitCode(uint32(ws)); got != want {
			t.Errorf("%s: %d, want %d", script, got, want)
		}
	}
}

func TestAnAnswerIsReadNoFurtherThanItMayGo(t *testing.T) {
	endless := &endlessList{}
	var processes []sentryProcess
	if err := decodeAnswer(endless, &processes); err == nil {
		t.Error("an endless answer was taken")
	}
	if endless.read > maxAnswer {
		t.Errorf("%d bytes were read, of at most %d", endless.read, maxAnswer)
	}
}

// An endlessList is an answer that never ends.
type endlessList struct{ read int }

func (e *endlessList) Read(p []byte) (int, error) {
	for i := range p {
		const head = `{"success":true,"result":[`
		if at := e.read + i; at < len(head) {
			p[i] = head[at]
		} else {
			p[i] = "{},"[(at-len(head))%3]
		}
	}
	e.read += len(p)
	return len(p), nil
}

// FuzzTasks compares the count with one that walks the same answer as generic
// JSON. Numbers that the typed decoder refuses are refused there by hand.
func FuzzTasks(f *testing.F) {
	f.Add([]byte(`{"success":true,"err":"","result":[{"uid":0,"pid":1,"threads":[1,2]},{"uid":1000,"pid":5,"threads":[5,6,7]}]}`))
	f.Add([]byte(`{"success":false,"err":"no such container","result":null}`))
	f.Add([]byte(`{"success":true,"result":null}`))
	f.Add([]byte(`{"success":true,"result":[{"uid":4294967296,"threads":[1]}]}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, answer []byte) {
		var processes []sentryProcess
		if decodeAnswer(bytes.NewReader(answer), &processes) != nil {
			return
		}
		// Keys match without regard to case and the last one wins, which a map
		// can't tell: such answers have no oracle.
		if lower := strings.ToLower(string(answer)); lower != string(answer) || strings.Contains(lower, `\`) ||
			strings.Count(lower, `"result"`) != 1 || strings.Count(lower, `"success"`) > 1 {
			return
		}
		var generic struct{ Result []map[string]json.RawMessage }
		if err := json.NewDecoder(bytes.NewReader(answer)).Decode(&generic); err != nil {
			t.Fatalf("taken: %q, but %v", answer, err)
		}
		var want int64
		for _, p := range generic.Result {
			if strings.Count(string(answer), `"uid"`) > len(generic.Result) || strings.Count(string(answer), `"threads"`) > len(generic.Result) {
				return
			}
			uid := strings.TrimSpace(string(p["uid"]))
			if uid == "" || uid == "0" || uid == "null" || uid == "-0" {
				continue
			}
			var threads []any
			json.Unmarshal(p["threads"], &threads)
			want += int64(len(threads))
		}
		if got := workloadTasks(processes); got != want {
			t.Errorf("%q: %d tasks, want %d", answer, got, want)
		}
	})
}
