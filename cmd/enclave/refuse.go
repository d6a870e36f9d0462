package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// refuseWords has c and the commands below it answer other words than they take with
// how they are used. Cobra shows help for a word that is not a command
// of a group, and ends with 0: a script would take that for success.
func refuseWords(c *cobra.Command) {
	for _, child := range c.Commands() {
		refuseWords(child)
	}
	how := fmt.Sprintf("see `%s --help`", c.CommandPath())
	switch {
	case c.HasSubCommands() && !c.Runnable():
		c.Args = cobra.NoArgs
		c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	case c.Runnable():
		how = "usage: " + c.UseLine()
	}
	if takes := c.Args; takes != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := takes(c, args); err != nil {
				return fmt.Errorf("%w: %s", err, how)
			}
			return nil
		}
	}
}
