package agent

import types "github.com/tpm-agent/tpm-agent/internal/ask"

// What a prompter asks and answers: see package ask.
type (
	Prompter      = types.Prompter
	Question      = types.Question
	AuthPrompt    = types.AuthPrompt
	ConfirmPrompt = types.ConfirmPrompt
	Notice        = types.Notice
	UseKind       = types.UseKind
	Use           = types.Use
	Grant         = types.Grant
)

// The kinds of use, and the grants.
const (
	UseUnknown       = types.UseUnknown
	UseLogin         = types.UseLogin
	UseSignature     = types.UseSignature
	UseCertificate   = types.UseCertificate
	GrantNo          = types.GrantNo
	GrantOnce        = types.GrantOnce
	GrantProcess     = types.GrantProcess
	GrantMinutes     = types.GrantMinutes
	GrantUntilLocked = types.GrantUntilLocked
	GrantTime        = types.GrantTime
)

// How asking may end.
var (
	ErrRefused  = types.ErrRefused
	ErrNoPrompt = types.ErrNoPrompt
	ErrNoAnswer = types.ErrNoAnswer
	ErrLeft     = types.ErrLeft
)
