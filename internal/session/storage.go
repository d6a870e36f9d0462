package session

// Storage is how many bytes a Store keeps of an organisation.
type Storage struct {
	Requests int64 // what sessions were to do; given back by Forget
	Results  int64 // what code gave enclave.result; given back by Forget
	Output   int64 // stdout and stderr; given back by Forget
	Records  int64 // sessions themselves and their events, which stay
}

// Used is the sum.
func (s Storage) Used() int64 { return s.Requests + s.Results + s.Output + s.Records }

// Plus returns the sums of both, part by part.
func (s Storage) Plus(t Storage) Storage {
	return Storage{s.Requests + t.Requests, s.Results + t.Results, s.Output + t.Output, s.Records + t.Records}
}

// Minus returns what is left of s without t, part by part.
func (s Storage) Minus(t Storage) Storage {
	return Storage{s.Requests - t.Requests, s.Results - t.Results, s.Output - t.Output, s.Records - t.Records}
}
