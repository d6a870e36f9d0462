package ui

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/enclave-run/enclave/internal/request"
)

// ReadCode returns the code to run and the name of the script it is from, if any:
// that of inline, if it is given, or of the script or "-" in args, or of in.
func ReadCode(in io.Reader, inline *string, args []string) (code, name string, err error) {
	var raw []byte
	switch {
	case inline != nil && len(args) > 0:
		return "", "", errors.New("give -c CODE or a script, not both")
	case inline != nil:
		raw = []byte(*inline)
	case len(args) == 0 && Typed(in):
		return "", "", errors.New("nothing to run: give -c CODE, a script, or code on standard input; see `enclave run --help`")
	case len(args) == 0 || args[0] == "-":
		if raw, err = io.ReadAll(io.LimitReader(in, request.MaxCode+1)); err != nil {
			return "", "", fmt.Errorf("read the code from standard input: %w", err)
		}
	default:
		name = args[0]
		if raw, err = readFile(name, request.MaxCode); err != nil {
			return "", "", fmt.Errorf("read the script: %w", err)
		}
	}
	switch {
	case len(raw) > request.MaxCode:
		return "", "", fmt.Errorf("the code has more than %d MiB; put data in files with --file", request.MaxCode>>20)
	case len(bytes.TrimSpace(raw)) == 0:
		return "", "", errors.New("the code is empty")
	case bytes.IndexByte(raw, 0) >= 0:
		return "", "", errors.New("the code has a NUL byte: it is not source code")
	case !utf8.Valid(raw):
		return "", "", errors.New("the code is not UTF-8")
	}
	return string(raw), name, nil
}

func GuessLanguage(name string) string {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".js", ".mjs", ".cjs":
		return "node"
	case ".sh", ".bash":
		return "bash"
	}
	return "python"
}

// ReadFiles reads what --file names: LOCAL:PATH, a local file and its path
// below /work, or LOCAL alone, which keeps its name.
func ReadFiles(specs []string) (map[string]string, error) {
	files := make(map[string]string, len(specs))
	total := 0
	for _, spec := range specs {
		local, inside, ok := strings.Cut(spec, ":")
		if !ok {
			inside = filepath.Base(local)
		}
		inside, ok = request.WorkPath(inside)
		if local == "" || !ok {
			return nil, fmt.Errorf("--file %q is not LOCAL:PATH with a path below /work", spec)
		}
		if _, twice := files[inside]; twice {
			return nil, fmt.Errorf("--file names /work/%s twice", inside)
		}
		raw, err := readFile(local, request.MaxFileBytes)
		if err != nil {
			return nil, fmt.Errorf("read --file: %w", err)
		}
		if !utf8.Valid(raw) {
			return nil, fmt.Errorf("--file %s is not UTF-8 text: encode it, for example with base64", local)
		}
		if total += len(raw); total > request.MaxFileBytes {
			return nil, fmt.Errorf("the files have more than %d MiB together", request.MaxFileBytes>>20)
		}
		files[inside] = string(raw)
	}
	if len(files) == 0 {
		return nil, nil
	}
	return files, nil
}

// readFile reads a file, but never more than one byte beyond limit.
func readFile(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit+1))
}
