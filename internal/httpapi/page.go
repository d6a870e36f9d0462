package httpapi

import (
	"net/http"
	"strconv"

	"github.com/enclave-run/enclave"
)

var errNextCursor = refuse("invalid_request", "cursor", "is not a nextCursor of this list")

func pageLimit(r *http.Request, usual, most int) (int, error) {
	q := r.URL.Query()
	if !q.Has("limit") {
		return usual, nil
	}
	n, err := strconv.Atoi(q.Get("limit"))
	if err != nil || n < 1 || n > most || strconv.Itoa(n) != q.Get("limit") {
		return 0, refuse("invalid_request", "limit", "must be from 1 to %d", most)
	}
	return n, nil
}

// pageOf returns the first limit of found, as the world may see them. One more
// than that tells that there is a next page, which begins after the last shown.
func pageOf[T, P any](found []T, limit int, public func(T) P, cursor func(T) string) enclave.Page[P] {
	p := enclave.Page[P]{Items: []P{}}
	for _, f := range found[:min(limit, len(found))] {
		p.Items = append(p.Items, public(f))
	}
	if len(found) > limit {
		p.NextCursor = cursor(found[limit-1])
	}
	return p
}
