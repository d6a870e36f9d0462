package ui

import "testing"

func TestLanguageFollowsTheName(t *testing.T) {
	for name, want := range map[string]string{
		"": "python", "a.py": "python", "a": "python", "a.js": "node", "a.MJS": "node", "a.cjs": "node", "x/y.sh": "bash", "a.bash": "bash",
	} {
		if got := GuessLanguage(name); got != want {
			t.Errorf("%q is %s, want %s", name, got, want)
		}
	}
}
