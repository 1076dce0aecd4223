package repl

import (
	"strings"

	"s0.run/internal/procapi"
)

// The prompts that the builtin REPLs are made to show.
const (
	Prompt       = "_S0_> "
	Continuation = "__S0_CONT__ "
)

// aliases are other names of builtin REPLs.
var aliases = map[string]string{
	"": "python", "python3": "python", "javascript": "node", "nodejs": "node", "rb": "ruby", "R": "r", "pl": "perl",
}

// Python without readline, which reads and echoes a byte per system call and
// makes a line of 1 KB cost 20 ms in a sandbox. `python -i` loads readline before
// any code of ours runs, so the interpreter is told to go interactive from within;
// the first prompt takes the variable away again, for children inherit it.
// Output is unbuffered as with -u, but input isn't.
const pythonPlain = `
def _():
 import io, os, sys
 class P:
  def __str__(p):
   os.unsetenv('PYTHONINSPECT')
   sys.ps1 = '` + Prompt + `'
   return sys.ps1
 P.first = sys.ps1 = P()
 sys.ps2 = '` + Continuation + `'
 os.putenv('PYTHONINSPECT', '1')
 if hasattr(sys, '__interactivehook__'): del sys.__interactivehook__
 for n in 'stdout', 'stderr':
  f = getattr(sys, n)
  setattr(sys, n, io.TextIOWrapper(io.open(f.fileno(), 'wb', 0, closefd=False), f.encoding, f.errors, write_through=True))
_()
del _
`

// Python as a person at a terminal wants it.
const pythonTerminal = `import sys; sys.ps1='` + Prompt + `'; sys.ps2='` + Continuation + `'
try:
 import readline; readline.parse_and_bind('set enable-bracketed-paste off'); del readline
except ImportError: pass
`

// Node's own continuation prompt varies with depth and version.
const nodeStart = `const r=require('repl').start({prompt:'` + Prompt + `',useGlobal:true,terminal:TERMINAL}),` +
	`p=r.prompt,s=require('readline').Interface.prototype.setPrompt;` +
	`r.prompt=function(k){if(r.getPrompt()!=='` + Prompt + `')s.call(r,'` + Continuation + `');p.call(r,k)}`

const rubyStart = `require 'irb';IRB.setup(nil,argv:[]);c=IRB.conf;` +
	`c[:PROMPT][:S0]={PROMPT_I:'` + Prompt + `',PROMPT_N:'` + Continuation + `',PROMPT_S:'` + Continuation + `',PROMPT_C:'` + Continuation + `',RETURN:"=> %s\n"};` +
	`c[:PROMPT_MODE]=:S0;c[:USE_AUTOCOMPLETE]=false;LINE;IRB::Irb.new.run(c)`

const luaStart = `_PROMPT='` + Prompt + `' _PROMPT2='` + Continuation + `'`

// Perl has no REPL; this one evaluates a line, or more while it lacks an end. Its
// variables have names that code is unlikely to use: code sees them.
const perlStart = `$|=1;my($__code,$__prompt)=('','` + Prompt + `');` +
	`while(print($__prompt),defined(my $__line=<STDIN>)){$__code.=$__line;{package main;no strict;eval $__code}` +
	`if($@=~/Missing right|at EOF|Can't find string terminator/&&$__line=~/\S/){$__prompt='` + Continuation + `';next}` +
	`print STDERR $@ if $@;($__code,$__prompt)=('','` + Prompt + `')}`

// PHP's own shell edits lines and echoes some twice.
const phpPlain = `$__code='';$__prompt='` + Prompt + `';` +
	`for(;;){echo $__prompt;if(($__line=fgets(STDIN))===false)break;$__code.=$__line;$__prompt='` + Prompt + `';` +
	`try{eval($__code);}catch(Throwable $__e){` +
	`if($__e instanceof ParseError&&preg_match('/unexpected end of file|^Unclosed/',$__e->getMessage())&&trim($__line)!==''){$__prompt='` + Continuation + `';continue;}` +
	`echo get_class($__e),': ',$__e->getMessage(),"\n";}$__code='';}`

// A shell's prompts come by the environment and are taken from it again before
// the first command, so that its children don't see them.
func shellEnv() map[string]string {
	return map[string]string{
		"PS1": Prompt, "PS2": Continuation,
		"PROMPT_COMMAND": "bind 'set enable-bracketed-paste off' 2>/dev/null; export -n PS1 PS2; unset PROMPT_COMMAND",
	}
}

// builtin returns the definition of a REPL that everybody may name. With a
// terminal there is a person at it, who wants to edit lines; without, only
// programs write, and line editing would cost time and garble what comes back.
func builtin(name string, terminal bool) (Definition, bool) {
	d := Definition{Name: name, Prompt: Prompt, Continuation: Continuation, Exact: !terminal}
	switch name {
	case "python":
		d.Env = map[string]string{"PYTHON_BASIC_REPL": "1"} // the 3.13 REPL paints its prompt
		d.CloseBlock = true
		args := []string{"-q", "-c", pythonPlain}
		if terminal {
			args = []string{"-q", "-i", "-u", "-c", pythonTerminal}
		}
		d.Candidates = each(args, "python3", "python")
	case "node":
		d.Candidates = each([]string{"-e", subst(nodeStart, "TERMINAL", terminal, "true", "false")}, "node", "nodejs")
	case "bash", "zsh":
		d.Env = shellEnv()
		d.Candidates = shells(name, terminal)
	case "ruby":
		line := "c[:USE_MULTILINE]=c[:USE_SINGLELINE]=c[:USE_COLORIZE]=false"
		d.Candidates = each([]string{"-e", subst(rubyStart, "LINE", terminal, "nil", line)}, "ruby")
	case "lua":
		d.Candidates = each([]string{"-i", "-e", luaStart}, "lua", "lua5.4", "lua5.3", "lua5.2", "lua5.1", "luajit")
	case "php":
		args := []string{"-r", phpPlain}
		if terminal {
			args = []string{"-d", "cli.prompt=" + Prompt, "-a"}
		}
		d.Candidates = each(args, "php")
	case "r":
		d.Candidates = each([]string{"--no-save", "--no-restore", "--quiet", "--no-readline"}, "R")
		d.Setup = "options(prompt='" + Prompt + "',continue='" + Continuation + "')\n"
	case "perl":
		d.Candidates = each([]string{"-e", perlStart}, "perl")
	case "sqlite":
		d.Candidates = each([]string{"-interactive", "-cmd", ".prompt '" + Prompt + "' '" + Continuation + "'"}, "sqlite3", "sqlite")
	case "redis-cli":
		d.Candidates = each(nil, "redis-cli")
		d.foreignPrompt("> ")
	case "swift":
		d.Candidates = []procapi.Candidate{{Name: "swift", Args: []string{"repl"}}}
		d.foreignPrompt("> ")
	case "kotlin":
		d.Candidates = each(nil, "kotlinc", "kotlin")
		d.foreignPrompt(">>> ")
	default:
		return Definition{}, false
	}
	if !terminal {
		d.plainTerminal(name)
	}
	return d, true
}

// plainTerminal keeps libraries that edit lines from it: a terminal that can't do
// anything, and so wide that they needn't scroll.
func (d *Definition) plainTerminal(name string) {
	switch name {
	case "lua", "php", "r", "sqlite", "redis-cli", "swift", "kotlin":
		d.Term, d.Columns = "dumb", 4096
	}
}

// foreignPrompt is for programs whose prompt can't be set: it is known by its end
// alone, which output may have, too.
func (d *Definition) foreignPrompt(end string) {
	d.Prompt, d.Continuation, d.Exact = end, "", false
}

func shells(name string, terminal bool) []procapi.Candidate {
	zsh := []string{"-f", "-i", "-o", "no_prompt_sp", "-o", "no_prompt_cr"}
	bash := []string{"--norc", "--noprofile", "-i"}
	if !terminal {
		zsh = append(zsh, "+Z")
		bash = []string{"--norc", "--noprofile", "--noediting", "-i"}
	}
	list := []procapi.Candidate{{Name: "bash", Args: bash}, {Name: "sh", Args: []string{"-i"}}}
	if name == "zsh" {
		list = append([]procapi.Candidate{{Name: "zsh", Args: zsh}}, list...)
	}
	return list
}

// subst fills the one place of a program that depends on who is at the terminal.
func subst(program, place string, terminal bool, yes, no string) string {
	if terminal {
		return strings.Replace(program, place, yes, 1)
	}
	return strings.Replace(program, place, no, 1)
}

func each(args []string, names ...string) []procapi.Candidate {
	list := make([]procapi.Candidate, len(names))
	for i, n := range names {
		list[i] = procapi.Candidate{Name: n, Args: args}
	}
	return list
}
