// Package failpoint lets a test make this program die, or an operation fail, at
// a named place between an intent, its effect and its acknowledgement. In a
// build without the tag "failpoint", which every release is, Hit does nothing
// and is compiled away.
package failpoint
