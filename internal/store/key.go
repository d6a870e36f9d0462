package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/enclave-run/enclave/internal/auth"
)

// SaveKey saves a new API key. It never replaces one: an id that is taken is an
// error.
func (s *Store) SaveKey(ctx context.Context, k auth.Key) error {
	if k.ID == "" || k.Org == "" {
		return errors.New("save key: it needs an id and an organisation")
	}
	scopes, err := json.Marshal(k.Scopes)
	if err != nil {
		return fmt.Errorf("save key %s: %w", k.ID, err)
	}
	err = s.do(ctx, func(ctx context.Context, t *tx) error {
		_, err := t.exec(ctx, "INSERT INTO keys ("+keyColumns+") VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
			k.ID, k.Org, k.User, k.Role, string(scopes), k.Hash[:], micros(k.Created), micros(k.Revoked))
		return err
	})
	if err != nil {
		return fmt.Errorf("save key %s: %w", k.ID, err)
	}
	return nil
}

// Key returns the key id, or auth.ErrNoKey. It names no organisation: the key
// is what says who asks. A revoked key is returned, and says so.
func (s *Store) Key(ctx context.Context, id string) (auth.Key, error) {
	k, err := scanKey(s.reads.QueryRowContext(ctx, "SELECT "+keyColumns+" FROM keys WHERE id = ?", id))
	if errors.Is(err, sql.ErrNoRows) {
		return auth.Key{}, auth.ErrNoKey
	} else if err != nil {
		return auth.Key{}, fmt.Errorf("read key: %w", err)
	}
	return k, nil
}

// Keys returns all keys of org, the revoked ones too, oldest first.
func (s *Store) Keys(ctx context.Context, org string) ([]auth.Key, error) {
	rows, err := s.reads.QueryContext(ctx, "SELECT "+keyColumns+" FROM keys WHERE org = ? ORDER BY rowid", org)
	if err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	defer rows.Close()
	var out []auth.Key
	for rows.Next() {
		k, err := scanKey(rows)
		if err != nil {
			return nil, fmt.Errorf("list keys: %w", err)
		}
		out = append(out, k)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	return out, nil
}

// RevokeKey ends the key id of org, from now on and for good. A key of another
// organisation is auth.ErrNoKey; one that is revoked keeps the time at which
// it first was.
func (s *Store) RevokeKey(ctx context.Context, org, id string) error {
	err := s.do(ctx, func(ctx context.Context, t *tx) error {
		res, err := t.exec(ctx, "UPDATE keys SET revoked = coalesce(revoked, ?) WHERE org = ? AND id = ?", s.now().UnixMicro(), org, id)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil {
			return err
		} else if n == 0 {
			return auth.ErrNoKey
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("revoke key %s: %w", id, err)
	}
	return nil
}

const keyColumns = "id, org, user, role, scopes, hash, created, revoked"

func scanKey(r interface{ Scan(...any) error }) (auth.Key, error) {
	var k auth.Key
	var scopes, hash []byte
	var created, revoked sql.NullInt64
	if err := r.Scan(&k.ID, &k.Org, &k.User, &k.Role, &scopes, &hash, &created, &revoked); err != nil {
		return auth.Key{}, err
	}
	if len(hash) != len(k.Hash) {
		return auth.Key{}, fmt.Errorf("the hash of key %s has %d bytes", k.ID, len(hash))
	}
	copy(k.Hash[:], hash)
	k.Created, k.Revoked = fromMicros(created), fromMicros(revoked)
	if err := json.Unmarshal(scopes, &k.Scopes); err != nil {
		return auth.Key{}, fmt.Errorf("decode the scopes of key %s: %w", k.ID, err)
	}
	return k, nil
}
