package store

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
)

// Exported says what Export wrote.
type Exported struct {
	Events   int64
	Unsigned int64 // committed, but not yet in the signed log, and so left out
}

// Export writes the whole signed log of the database at path to w, as
// audit.VerifyLog reads it. It reads one state of the database and changes
// nothing; a server may be using it. progress, if not nil, is told every
// thousand events how many of all are written.
func Export(ctx context.Context, path string, w io.Writer, progress func(done, all int64)) (Exported, error) {
	x, err := export(ctx, path, w, progress)
	if err != nil {
		return Exported{}, fmt.Errorf("export the log: %w", err)
	}
	return x, nil
}

func export(ctx context.Context, path string, w io.Writer, progress func(done, all int64)) (x Exported, err error) {
	if path, err = filepath.Abs(path); err != nil {
		return x, err
	}
	if _, err := os.Stat(path); err != nil {
		return x, err // SQLite would make the file
	}
	db, err := sql.Open("sqlite", dsn(path, "busy_timeout(5000)", "query_only(1)"))
	if err != nil {
		return x, err
	}
	defer db.Close()
	t, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return x, err
	}
	defer t.Rollback()
	var id, version, last int64
	if err := t.QueryRowContext(ctx, "PRAGMA application_id").Scan(&id); err != nil || id != applicationID {
		return x, errors.Join(ErrForeign, err)
	}
	if err := t.QueryRowContext(ctx, "SELECT version, (SELECT coalesce(max(position), 0) FROM events) FROM schema").Scan(&version, &last); err != nil {
		return x, err
	}
	if version > schemaVersion {
		return x, fmt.Errorf("%w: it has version %d, this program knows %d", ErrNewer, version, schemaVersion)
	}
	note, tree, err := checkpointAt(ctx, t, 0)
	if err != nil {
		return x, err
	}
	rows, err := t.QueryContext(ctx, `SELECT s.id, e.seq, e.time, e.type, e.data, e.hash FROM events e JOIN sessions s ON s.n = e.session
		WHERE e.position <= ? ORDER BY e.position`, tree.N)
	if err != nil {
		return x, err
	}
	defer rows.Close()
	out := bufio.NewWriterSize(w, 256<<10)
	for rows.Next() {
		var micros int64
		var e audit.Event
		var data sql.RawBytes
		if err := rows.Scan(&e.Session, &e.Seq, &micros, &e.Type, &data, &e.Hash); err != nil {
			return x, err
		}
		x.Events++
		e.Time = time.UnixMicro(micros).UTC()
		if err := json.Unmarshal(data, &e.Data); err != nil {
			return x, fmt.Errorf("%w: event %d: %w", ErrTampered, x.Events, err)
		}
		line, err := audit.LogLine(e)
		if err != nil {
			return x, err
		}
		if _, err := out.Write(line); err != nil {
			return x, err
		}
		if progress != nil && x.Events%1000 == 0 {
			progress(x.Events, tree.N)
		}
	}
	if err := rows.Err(); err != nil {
		return x, err
	}
	if x.Events != tree.N {
		return x, fmt.Errorf("%w: of %d signed events %d are left", ErrTampered, tree.N, x.Events)
	}
	end, err := audit.LogEnd(note)
	if err != nil {
		return x, err
	}
	if _, err := out.Write(end); err != nil {
		return x, err
	}
	x.Unsigned = last - tree.N
	return x, out.Flush()
}
