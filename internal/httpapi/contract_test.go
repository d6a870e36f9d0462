package httpapi

import (
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave/api"
	"github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/openapitest"
)

// newRig holds every exchange of every test of this package to the document;
// what is here holds the document to the server.

func document(t *testing.T) *openapitest.Document {
	t.Helper()
	d, err := openapitest.Load()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestRoutesAreThoseOfTheDocument(t *testing.T) {
	var routes []string
	for _, rt := range newRig(t).routes() {
		routes = append(routes, rt.method+" "+rt.path)
	}
	slices.Sort(routes)
	if diff := cmp.Diff(document(t).Routes(), routes); diff != "" {
		t.Errorf("api/openapi.yaml (-) and the server (+):\n%s", diff)
	}
}

// codes are all that a problem can have, with their statuses.
func codes() map[string]int {
	all := map[string]int{
		"internal": http.StatusInternalServerError,
		// Of refusals, which are no sentinels.
		"invalid_request": http.StatusBadRequest, "invalid_json": http.StatusBadRequest, "body_too_large": http.StatusBadRequest,
		control.RateLimited: http.StatusTooManyRequests, control.QuotaExceeded: http.StatusTooManyRequests, control.QueueFull: http.StatusTooManyRequests,
		control.StorageFull: http.StatusServiceUnavailable,
	}
	for _, a := range answers() {
		all[a.code] = a.status
	}
	return all
}

func TestCodesAreThoseOfTheDocument(t *testing.T) {
	if diff := cmp.Diff(document(t).Codes(), codes()); diff != "" {
		t.Errorf("api/openapi.yaml (-) and the server (+):\n%s", diff)
	}
}

// The table for people has each code once, beside its status.
func TestCodesAreThoseOfTheTable(t *testing.T) {
	b, err := os.ReadFile("../../api/README.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]int{}
	code := regexp.MustCompile("`([a-z_]+)`")
	for _, row := range regexp.MustCompile(`(?m)^\| (\d{3}) \| ([^|]*) \|`).FindAllSubmatch(b, -1) {
		status, err := strconv.Atoi(string(row[1]))
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range code.FindAllSubmatch(row[2], -1) {
			if _, twice := shown[string(c[1])]; twice {
				t.Errorf("%s is there twice", c[1])
			}
			shown[string(c[1])] = status
		}
	}
	if diff := cmp.Diff(shown, codes()); diff != "" {
		t.Errorf("api/README.md (-) and the server (+):\n%s", diff)
	}
}

// refuse is called with literals all over the package: none may be a code that
// nobody knows.
func TestRefusalsHaveKnownCodes(t *testing.T) {
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	for _, e := range entries {
		b, err := os.ReadFile(e.Name())
		if e.IsDir() || err != nil {
			continue
		}
		for _, m := range regexp.MustCompile(`refuse\("([a-z_]+)"`).FindAllSubmatch(b, -1) {
			seen = append(seen, string(m[1]))
		}
	}
	known := slices.Collect(maps.Keys(codes()))
	for _, c := range seen {
		if !slices.Contains(known, c) {
			t.Errorf("code %q is nowhere else", c)
		}
	}
	if len(seen) < 10 {
		t.Errorf("only %d refusals were found: the search is broken", len(seen))
	}
}

func TestTheServerServesItsDocument(t *testing.T) {
	r := newRig(t)
	resp, body := r.do(t, "GET", "/openapi.yaml", "", nil)
	if resp.StatusCode != http.StatusOK || body != string(api.OpenAPI) || resp.Header.Get("Content-Type") != "application/yaml" {
		t.Errorf("%d %s, %d bytes", resp.StatusCode, resp.Header.Get("Content-Type"), len(body))
	}
}
