package main

import (
	"context"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/server"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/ui"
	"github.com/spf13/cobra"
)

// completeTime bounds what a press of the tab key waits for.
const completeTime = 2 * time.Second

// completeSessions completes the ids of sessions, from a control plane that is
// there: none is started for it, and what fails completes nothing.
func (p *program) completeSessions(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completeTime)
	defer cancel()
	cl, done := p.present(ctx)
	if cl == nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer done()
	page, err := cl.List(ctx, enclave.ListOptions{Limit: 50})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var ids []cobra.Completion
	for _, s := range page.Items {
		if ui.Visible(s.ID) != s.ID {
			continue // the shell would write it on a terminal
		}
		about := string(s.Phase)
		if l := ui.JoinLabels(s.Labels); l != "" {
			about += " " + l
		}
		ids = append(ids, cobra.CompletionWithDesc(s.ID, ui.Visible(about)))
	}
	return ids, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
}

// present returns a client of the control plane that is there, or nil.
func (p *program) present(ctx context.Context) (*enclave.Client, func()) {
	if p.opts.validate() != nil { // a completion runs no PersistentPreRunE
		return nil, nil
	}
	if p.opts.remote() {
		return p.remoteClient(), func() {}
	}
	s, err := statedir.Find(p.opts.State)
	if err != nil {
		return nil, nil
	}
	k, err := server.Hold(ctx, s)
	if err != nil {
		return nil, nil
	}
	return k.Client, k.Close
}

// completeImages completes the names and digests of this host's images.
func (p *program) completeImages(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var names []cobra.Completion
	if p.opts.validate() != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	s, err := statedir.Find(p.opts.State)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	store, err := image.Open(s.File("images"))
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	infos, err := store.List()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	for _, i := range infos {
		for _, n := range i.Names {
			names = append(names, cobra.CompletionWithDesc(n, i.Digest))
		}
		names = append(names, i.Digest)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeWords completes one of a closed list.
func completeWords(words ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
}
