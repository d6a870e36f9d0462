// Package api holds the OpenAPI document of the control plane's HTTP API, and in
// testdata a document of each kind that it speaks of. It has no code: what
// serves the API is package httpapi, whose tests hold it to the document.
package api

import _ "embed"

// OpenAPI is the document, in YAML, as GET /openapi.yaml serves it.
//
//go:embed openapi.yaml
var OpenAPI []byte
