// Package crash has the tests that kill the whole program, at every failpoint
// and at random moments, and what its sandboxes depend on, and compare what its
// clients were told with what a restart finds. It has no code besides.
package crash
