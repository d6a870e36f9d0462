package openapitest

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// visit returns how v, decoded JSON, is not what s describes.
//
// Schemas are judged by a validator of JSON Schema and not by kin-openapi: that
// falls back to an older one, which ignores what it does not know, where a
// schema can't be compiled.
func (d *Document) visit(s *openapi3.SchemaRef, v any) error {
	c, err := d.compile(s)
	if err != nil {
		return err
	}
	return c.Validate(v)
}

// compile returns s as a schema that refers to the document's components.
func (d *Document) compile(s *openapi3.SchemaRef) (*jsonschema.Schema, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.compiled[s]; c != nil {
		return c, nil
	}
	raw, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode a schema: %w", err)
	}
	whole, err := json.Marshal(map[string]json.RawMessage{"components": d.components, "this": raw, "$ref": json.RawMessage(`"#/this"`)})
	if err != nil {
		return nil, fmt.Errorf("encode a schema: %w", err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(whole))
	if err != nil {
		return nil, fmt.Errorf("read a schema: %w", err)
	}
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	compiler.AssertFormat()
	compiler.AssertContent()
	const name = "openapi.json"
	if err := compiler.AddResource(name, doc); err != nil {
		return nil, fmt.Errorf("read a schema: %w", err)
	}
	c, err := compiler.Compile(name)
	if err != nil {
		return nil, fmt.Errorf("compile %.200s: %w", raw, err)
	}
	d.compiled[s] = c
	return c, nil
}
