package simulator

import (
	"math"
	"strings"
)

// binary is an arithmetic operation. What overflows is unknown.
func (py *python) binary(op string, a, b value) (value, error) {
	if op == "*" {
		for _, pair := range [][2]value{{a, b}, {b, a}} {
			if n, ok := integer(pair[1]); ok {
				if v := repeat(pair[0], n); v != value(unknown{}) {
					return v, py.fits(v)
				}
			}
		}
	}
	x, xok := integer(a)
	y, yok := integer(b)
	if xok && yok {
		return integers(op, x, y)
	}
	f, fok := float(a)
	g, gok := float(b)
	if fok && gok {
		return floats(op, f, g)
	}
	if op == "+" {
		if l, ok := a.(*list); ok {
			if m, ok := b.(*list); ok && len(l.items)+len(m.items) <= maxItems {
				return &list{append(append([]value{}, l.items...), m.items...), l.kind}, nil
			}
			return unknown{}, nil
		}
		v := add(a, b)
		return v, py.fits(v)
	}
	if s, ok := a.(string); ok && op == "%" {
		s, _, _ = strings.Cut(s, "%")
		return partial{s}, nil
	}
	return unknown{}, nil
}

// fits ends the sandbox if a value is larger than its memory.
func (py *python) fits(v value) error {
	if b, ok := v.(blob); ok && b.bytes > py.limits().Memory {
		return py.keep(b.bytes)
	}
	return nil
}

func integers(op string, x, y int64) (value, error) {
	const small = 1 << 31
	safe := x > -small && x < small && y > -small && y < small
	wide := x > -small*small/2 && x < small*small/2 && y > -small*small/2 && y < small*small/2
	switch {
	case op == "+" && wide:
		return x + y, nil
	case op == "-" && wide:
		return x - y, nil
	case op == "*" && safe:
		return x * y, nil
	case op == "**" && y >= 0 && y < 64:
		if f := math.Pow(float64(x), float64(y)); math.Abs(f) < 1<<53 {
			return int64(f), nil
		}
	case op == "<<" && y >= 0 && y < 32 && safe:
		return x << y, nil
	case op == ">>" && y >= 0 && y < 64:
		return x >> y, nil
	case op == "&":
		return x & y, nil
	case op == "|":
		return x | y, nil
	case op == "^":
		return x ^ y, nil
	case y == 0 && (op == "/" || op == "//" || op == "%"):
		return nil, raise("ZeroDivisionError", "division by zero")
	case op == "/":
		return float64(x) / float64(y), nil
	case (op == "//" || op == "%") && y != -1:
		q, r := x/y, x%y
		if r != 0 && (r < 0) != (y < 0) {
			q, r = q-1, r+y
		}
		if op == "//" {
			return q, nil
		}
		return r, nil
	}
	return unknown{}, nil
}

func floats(op string, x, y float64) (value, error) {
	switch op {
	case "+":
		return x + y, nil
	case "-":
		return x - y, nil
	case "*":
		return x * y, nil
	case "/":
		if y == 0 {
			return nil, raise("ZeroDivisionError", "float division by zero")
		}
		return x / y, nil
	}
	return unknown{}, nil
}
