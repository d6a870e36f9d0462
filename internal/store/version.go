package store

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
)

// Version returns the version of the database at path and the newest that this
// program can read. It changes neither the database nor its log, and makes the
// index of the log beside them if there is none.
func Version(ctx context.Context, path string) (have, knows int64, err error) {
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path, RawQuery: "mode=ro"}).String())
	if err != nil {
		return 0, schemaVersion, fmt.Errorf("open %s: %w", path, err)
	}
	defer db.Close()
	if err := db.QueryRowContext(ctx, "SELECT version FROM schema").Scan(&have); err != nil {
		return 0, schemaVersion, fmt.Errorf("read the version of %s: %w", path, err)
	}
	return have, schemaVersion, nil
}
