package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// The domains keep a hash made for one purpose from being taken for another.
const (
	eventDomain = "enclave audit event v1\n"
	leafDomain  = "enclave audit leaf v1\n"
)

// Seal returns e as the successor of prev: numbered and hashed. The zero Event
// is the predecessor of the first. The caller has set Session, Time, Type and
// Data; Seq and Hash are overwritten.
//
// The hash is, in hex, the SHA-256 of the domain "enclave audit event v1\n",
// the 32 bytes of the predecessor's hash (zeros for the first event), the
// length of the canonical JSON as eight big-endian bytes, and the canonical
// JSON: what encoding/json makes of e with an empty hash.
//
// What Seal returns survives JSON unchanged, so it is made exact first: the
// time in UTC and whole microseconds, invalid UTF-8 replaced, a measurement
// that is no number left out.
func Seal(prev, e Event) Event {
	e.Seq, e.Hash = prev.Seq+1, ""
	e.Time = e.Time.UTC().Truncate(time.Microsecond)
	e.Data.CPUSeconds = finite(e.Data.CPUSeconds)
	e.Data.WallSeconds = finite(e.Data.WallSeconds)
	b, err := canonical(e)
	if err != nil {
		panic(err) // only a year that RFC 3339 can't write, and who seals sets the time
	}
	// encoding/json writes an invalid byte as \ufffd but the character U+FFFD as
	// itself, so an event with one would not hash the same after it was read back.
	if bytes.Contains(b, []byte(`\ufffd`)) {
		var clean Event
		if err := json.Unmarshal(b, &clean); err != nil {
			panic(err) // it was marshaled above
		}
		e = clean
		if b, err = canonical(e); err != nil {
			panic(err)
		}
	}
	h := digest(hashOf(prev), b)
	e.Hash = hex.EncodeToString(h[:])
	return e
}

// Verify reports the first event that does not follow from the one before it.
// The events are the record of one session from its beginning; that none are
// missing at the end can't be seen here. No events are an error: they show
// nothing.
func Verify(events []Event) error {
	if len(events) == 0 {
		return errors.New("no events")
	}
	var prev Event
	var last [sha256.Size]byte
	for i, e := range events {
		switch {
		case e.Session == "" || e.Session != events[0].Session:
			return fmt.Errorf("event %d names session %q, the record is of %q", i+1, e.Session, events[0].Session)
		case e.Seq != uint64(i)+1:
			return fmt.Errorf("event %d of session %s says it is number %d", i+1, e.Session, e.Seq)
		case e.Time.Location() != time.UTC || !e.Time.Equal(e.Time.Truncate(time.Microsecond)):
			return fmt.Errorf("event %d of session %s: time is not in whole microseconds UTC", e.Seq, e.Session)
		case !e.Type.Known():
			return fmt.Errorf("event %d of session %s has unknown type %q", e.Seq, e.Session, e.Type)
		}
		b, err := canonical(e)
		if err != nil {
			return fmt.Errorf("event %d of session %s: %w", e.Seq, e.Session, err)
		}
		h := digest(last, b)
		if e.Hash != hex.EncodeToString(h[:]) {
			return fmt.Errorf("event %d of session %s does not follow from event %d: its hash differs", e.Seq, e.Session, prev.Seq)
		}
		prev, last = e, h
	}
	return nil
}

// Leaf returns what stands for the sealed event e in the global log: the
// RFC 6962 leaf hash of the domain "enclave audit leaf v1\n", the 32 bytes of
// e's hash, its number as eight big-endian bytes, and its session.
func Leaf(e Event) (tlog.Hash, error) {
	h, err := hex.DecodeString(e.Hash)
	if err != nil || len(h) != sha256.Size {
		return tlog.Hash{}, fmt.Errorf("event %d of session %s has a malformed hash", e.Seq, e.Session)
	}
	b := append([]byte(leafDomain), h...)
	b = binary.BigEndian.AppendUint64(b, e.Seq)
	return tlog.RecordHash(append(b, e.Session...)), nil
}

// canonical is the byte form of e that is hashed: its JSON with an empty hash.
func canonical(e Event) ([]byte, error) {
	e.Hash = ""
	return json.Marshal(e)
}

func digest(prev [sha256.Size]byte, canonical []byte) [sha256.Size]byte {
	b := make([]byte, 0, len(eventDomain)+len(prev)+8+len(canonical))
	b = append(b, eventDomain...)
	b = append(b, prev[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(len(canonical)))
	return sha256.Sum256(append(b, canonical...))
}

// hashOf returns the bytes of a sealed event's hash, zeros for the zero Event.
// Anything else is no sealed event, and nothing may follow from it.
func hashOf(e Event) (h [sha256.Size]byte) {
	if e.Seq == 0 && e.Hash == "" {
		return h
	}
	b, err := hex.DecodeString(e.Hash)
	if err != nil || len(b) != len(h) {
		panic(fmt.Sprintf("audit: event %d of session %s is not sealed", e.Seq, e.Session))
	}
	copy(h[:], b)
	return h
}

func finite(f *float64) *float64 {
	if f == nil || math.IsNaN(*f) || math.IsInf(*f, 0) {
		return nil
	}
	return f
}
