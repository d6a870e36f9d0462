package store

import (
	"context"
	"database/sql"
	"sync"
)

// readers are the connections for reading. A query is parsed once for each of
// them and not each time: its text is a constant of this package, so there are
// few.
type readers struct {
	*sql.DB
	stmts sync.Map // text → *sql.Stmt
}

// stmt returns the query, parsed, or nil if it can't be: then asking it says why.
func (r *readers) stmt(ctx context.Context, query string) *sql.Stmt {
	if st, ok := r.stmts.Load(query); ok {
		return st.(*sql.Stmt)
	}
	st, err := r.PrepareContext(ctx, query)
	if err != nil {
		return nil
	}
	if first, had := r.stmts.LoadOrStore(query, st); had {
		st.Close()
		return first.(*sql.Stmt)
	}
	return st
}

func (r *readers) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if st := r.stmt(ctx, query); st != nil {
		return st.QueryContext(ctx, args...)
	}
	return r.DB.QueryContext(ctx, query, args...)
}

func (r *readers) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	if st := r.stmt(ctx, query); st != nil {
		return st.QueryRowContext(ctx, args...)
	}
	return r.DB.QueryRowContext(ctx, query, args...)
}
