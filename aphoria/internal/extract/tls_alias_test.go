package extract

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/aphoria/internal/source"
)

func TestParenthesesAndUnpackingHideNoVerifyFalse(t *testing.T) {
	block, flag := []Verdict{Block}, []Verdict{Flag}
	for text, want := range map[string][]Verdict{
		"requests.get(u, verify=(False))":                                  block,
		"requests.get(u, verify=((\n False # why\n)))":                     block,
		"requests.get(u, verify=not True)":                                 block,
		"requests.get(u, verify=not (not False))":                          block,
		"requests.get(u, verify=(not (True)))":                             block,
		"s.verify = (False)\nx = 1":                                        block,
		"s.verify = (\n  False\n)\nx = 1":                                  block,
		"s.verify = False\nnot_this(s)":                                    block,
		"s.verify = False\nnot s":                                          block,
		"s.verify = (False)":                                               block,
		"self.verify = (False)":                                            flag,
		"def f(verify=(False)): pass":                                      nil,
		"f = lambda verify=(False): 1":                                     nil,
		"jwt.decode(t, verify=(False))":                                    nil,
		"P(cert_reqs=(ssl.CERT_NONE))":                                     block,
		"P(cert_reqs=(('CERT_NONE')))":                                     block,
		"c.verify_mode = (ssl.CERT_NONE)\nx = 1":                           block,
		"requests.get(u, verify=False if lax else True)":                   block,
		"requests.get(u, verify=(False if lax else True))":                 block,
		"requests.get(u, verify=(False or bundle))":                        flag,
		"requests.get(u, verify=(False) or bundle)":                        flag,
		"requests.get(u, verify=(False == lax))":                           flag,
		"requests.get(u, verify=(False, True))":                            nil,
		"requests.get(u, verify=(bundle))":                                 nil,
		"requests.get(u, verify=(not False))":                              nil,
		"requests.get(u, verify='False')":                                  nil,
		"requests.get(u, verify=(False).real)":                             nil,
		`requests.get(u, **{"verify": False})`:                             block,
		`requests.get(u, **{'timeout': 3, 'verify': (False), 'x': [1]})`:   block,
		"requests.get(u, **{\n  # why\n  'verify': False,\n})":             block,
		`requests.get(u, **({"verify": False} if lax else {}))`:            block,
		`requests.get(u, **{**base, "verify": False})`:                     block,
		`requests.get(u, **{**{"verify": False}})`:                         block,
		`requests.get(u, **dict(verify=False))`:                            block,
		`requests.get(u, **(dict(verify=False)))`:                          block,
		`partial(requests.get, **{"verify": False})`:                       block,
		`partial(jwt.decode, **{"verify": False})`:                         nil,
		`jwt.decode(t, **{"verify": False})`:                               nil,
		`merge(x, **{"verify": False})`:                                    flag,
		`P(**{"cert_reqs": ssl.CERT_NONE})`:                                block,
		`requests.get(u, **{"headers": {"verify": False}})`:                nil,
		`requests.get(u, **{"x": "verify", False: 1})`:                     nil,
		`requests.get(u, json={"verify": False})`:                          nil,
		`requests.get(u, {"a": 2 ** 3, "verify": False})`:                  nil,
		`x = {"verify": False}`:                                            nil,
		`x = {**{"verify": False}}`:                                        nil,
		`requests.get(u, *{"verify": False})`:                              nil,
		`requests.get(u, dict(verify=False))`:                              flag,
		"print(f'{requests.get(u, verify=(False))}')":                      block,
		"requests.get(u, headers=(x), verify=(False), timeout=(3, (4,5)))": block,
	} {
		require.Equal(t, want, verdicts(t, "a.py", text), text)
	}
}

func TestAnImportedNameIsJudgedByItsFullName(t *testing.T) {
	block, flag := []Verdict{Block}, []Verdict{Flag}
	for text, want := range map[string][]Verdict{
		"from requests import post as p\np(u, verify=False)":                                                         block,
		"from requests import (\n  get as g, # why\n  post as p,\n)\np(u, verify=False)":                             block,
		"from requests import get as g, post as p; p(u, verify=False)":                                               block,
		"from requests import get as g, \\\n  post as p\np(u, verify=False)":                                         block,
		"def f():\n  from requests import post as p\n  p(u, verify=False)":                                           block,
		"def f():\n  p(u, verify=False)\nfrom requests import post as p":                                             block,
		"import requests as r\nr.get(u, verify=False)":                                                               block,
		"import os, requests as r\nr.anything(u, verify=False)":                                                      block,
		"import requests.sessions as s, os\ns.anything(u, verify=False)":                                             block,
		"from requests import api as a\na.anything(u, verify=False)":                                                 block,
		"from hvac import Client as C\nC(verify=False)":                                                              block,
		"from functools import partial as part\nimport requests as r\npart(r.send_it, verify=False)":                 block,
		"import functools as f\nf.partial(jwt.decode, verify=False)":                                                 nil,
		"from jwt import decode as d\nd(t, verify=False)":                                                            nil,
		"import jwt as j\nj.check(t, verify=False)":                                                                  nil,
		"from jwt import encode as get\nget(t, verify=False)":                                                        nil,
		"from tools import merge as get\nget(a, verify=False)":                                                       flag,
		"from .requests import merge as m\nm(a, verify=False)":                                                       flag,
		"from . import requests as r\nr.merge(a, verify=False)":                                                      flag,
		"try:\n  from requests import go as g\nexcept ImportError:\n  from httpx import go as g\ng(u, verify=False)": block,
		"try:\n  from requests import go as g\nexcept ImportError:\n  from tools import go as g\ng(u, verify=False)": flag,
		"from requests import post as p\np = merge\np(u, verify=False)":                                              flag,
		"from requests import post as p\np, q = merge, 1\np(u, verify=False)":                                        flag,
		"from requests import post as p\nif (p := merge):\n  p(u, verify=False)":                                     flag,
		"from requests import post as p\ndef f(a, p):\n  p(u, verify=False)":                                         flag,
		"from requests import post as p\ndef f(a=1, *p):\n  p(u, verify=False)":                                      flag,
		"from requests import post as p\ndef p(u, verify): pass\np(u, verify=False)":                                 flag,
		"from requests import post as p\nclass p: pass\np(u, verify=False)":                                          flag,
		"from requests import post as p\nfor p in ps: p(u, verify=False)":                                            flag,
		"from requests import post as p\nx = [p(u, verify=False) for a, p in ps]":                                    flag,
		"from requests import post as p\nwith a() as p: p(u, verify=False)":                                          flag,
		"from requests import post as p\nx = lambda a, p: p(u, verify=False)":                                        flag,
		"from requests import post as p\nx.p = 1\nf(p=2)\nif p == 1: pass\na[p] = p.q = 1\np(u, verify=False)":       block,
		"yield_from = 1\ndef f():\n  yield from post\n  raise E from p\np(u, verify=False)":                          flag,
		"\"from requests import post as p\"\np(u, verify=False)":                                                     flag,
		"# from requests import post as p\np(u, verify=False)":                                                       flag,
		"from ssl import CERT_NONE as N\nc.verify_mode = N":                                                          block,
		"import ssl as s\nc.verify_mode = s.CERT_NONE":                                                               block,
		"from x import REQUIRED as CERT_NONE\nc.verify_mode = CERT_NONE":                                             nil,
		"from ssl import _create_unverified_context as c\nurlopen(u, context=c())":                                   block,
		"from ssl import _create_unverified_context\nurlopen(u, context=_create_unverified_context())":               block,
		"import ssl as s\nx = s._create_unverified_context":                                                          block,
		"import ssl\nssl._create_default_https_context = ssl._create_unverified_context":                             block,
		"from ssl import _create_unverified_context as context\nurlopen(u, context=x)":                               nil,
		"from ssl import _create_unverified_context as c\nf(c=1)\nx.c\nd = {'c': 1}":                                 nil,
		"from mine import _create_unverified_context as c\nc()":                                                      nil,
		"from mine import _create_unverified_context\n_create_unverified_context()":                                  nil,
	} {
		require.Equal(t, want, verdicts(t, "a.py", text), text)
	}
}

func TestParenthesesAndAliasesHideNoGo(t *testing.T) {
	block, flag := []Verdict{Block}, []Verdict{Flag}
	for text, want := range map[string][]Verdict{
		"import t \"crypto/tls\"\nvar c = t.Config{InsecureSkipVerify: (true)}":     block,
		"import . \"crypto/tls\"\nvar c = Config{InsecureSkipVerify: ((!(false)))}": block,
		"func f() { (c).InsecureSkipVerify = (true); c.VerifyConnection = v }":      flag,
		"func f() { c.InsecureSkipVerify = true; (*c).VerifyConnection = v }":       flag,
		"func f() { ((*(c))).InsecureSkipVerify = true; c.VerifyConnection = v }":   flag,
		"func f() { (c).InsecureSkipVerify = true; d.VerifyConnection = v }":        block,
		"func f() { (c.InsecureSkipVerify) = true }":                                block,
		"var c = tls.Config{InsecureSkipVerify: (false)}":                           nil,
		"var c = tls.Config{InsecureSkipVerify: (!true)}":                           nil,
	} {
		require.Equal(t, want, verdicts(t, "a.go", "package a\n"+text), text)
	}
	e, err := TLSVerify()
	require.NoError(t, err)
	for text, want := range map[string]int{ // without a syntax tree
		"InsecureSkipVerify: (true)": 1, "InsecureSkipVerify = ((!false))": 1, "InsecureSkipVerify: (!true)": 0, "InsecureSkipVerify: (false)": 0,
		"InsecureSkipVerify: !!true": 1, "InsecureSkipVerify(true)": 0,
	} {
		found, err := e.Extract(t.Context(), source.NewFile("a.go", []byte(text)), NewModules("p"))
		require.ErrorContains(t, err, "cannot be parsed")
		require.Len(t, found, want, text)
	}
}

func TestParenthesesAndAliasesHideNoJavaScript(t *testing.T) {
	block, flag := []Verdict{Block}, []Verdict{Flag}
	const set = ".NODE_TLS_REJECT_UNAUTHORIZED = '0'"
	for text, want := range map[string][]Verdict{
		"a({rejectUnauthorized: (false)})":                                                      block,
		"a({rejectUnauthorized: ( /* why */\n(false) )})":                                       block,
		"a({rejectUnauthorized: (!1)})":                                                         block,
		"a({rejectUnauthorized: !true})":                                                        block,
		"o['rejectUnauthorized'] = (false)":                                                     block,
		"const {Agent: A} = require('https'); new A({rejectUnauthorized: (false)})":             block,
		"import {Agent as A} from 'node:https'; new A({rejectUnauthorized: false})":             block,
		"a({rejectUnauthorized: !0})":                                                           nil,
		"a({rejectUnauthorized: (!0)})":                                                         nil,
		"a({rejectUnauthorized: (true)})":                                                       nil,
		"a({rejectUnauthorized: (false || x)})":                                                 nil,
		"a({rejectUnauthorized: ((false), true)})":                                              nil,
		"a({rejectUnauthorized: (falsey)})":                                                     nil,
		"a({rejectUnauthorized: (((":                                                            nil,
		"process.env.NODE_TLS_REJECT_UNAUTHORIZED = ('0')":                                      block,
		"process.env['NODE_TLS_REJECT_UNAUTHORIZED'] = ((0))":                                   block,
		"process /* why */ . env" + set:                                                         block,
		"globalThis.process.env" + set:                                                          block,
		"process?.env?.['NODE_TLS_REJECT_UNAUTHORIZED'] = 0":                                    block,
		"const e = process.env;\ne" + set:                                                       block,
		"const {env} = process\nenv" + set:                                                      block,
		"const { argv, env: e } = require('process');\ne" + set:                                 block,
		"const e = require(\"node:process\").env;\ne" + set:                                     block,
		"import {env} from 'process';\nenv" + set:                                               block,
		"import {argv, env as e} from \"node:process\";\ne['NODE_TLS_REJECT_UNAUTHORIZED'] = 0": block,
		"import p from 'process';\np.env" + set:                                                 block,
		"import * as p from 'node:process';\np.env" + set:                                       block,
		"import p, {env as e} from 'node:process';\ne" + set:                                    block,
		"const p = process;\np.env" + set:                                                       block,
		"env" + set:                                                                             flag,
		"saved" + set:                                                                           flag,
		"const e = process.env.HOME;\ne" + set:                                                  flag,
		"const t = process.title;\nt.env" + set:                                                 flag,
		"// const e = process.env;\ne" + set:                                                    flag,
		"const s = 'const e = process.env';\ne" + set:                                           flag,
		"process.env.NODE_TLS_REJECT_UNAUTHORIZED = ('1')":                                      nil,
		"process.env.NODE_TLS_REJECT_UNAUTHORIZED === '0'":                                      nil,
		"if (process.env.NODE_TLS_REJECT_UNAUTHORIZED == (0)) {}":                               nil,
		"'process.env.NODE_TLS_REJECT_UNAUTHORIZED = 0'":                                        nil,
		"let NODE_TLS_REJECT_UNAUTHORIZED = '0'":                                                nil,
		"process.env.MY_NODE_TLS_REJECT_UNAUTHORIZED = '0'":                                     nil,
	} {
		require.Equal(t, want, verdicts(t, "a.js", text), text)
	}
}

func TestConstantsAndConversionsHideNoGo(t *testing.T) {
	block, flag := []Verdict{Block}, []Verdict{Flag}
	const set, config = "var c = tls.Config{InsecureSkipVerify: t}\n", "var c = tls.Config{InsecureSkipVerify: true, VerifyConnection: "
	for text, want := range map[string][]Verdict{
		"func f() {\nconst t = true\nc := tls.Config{InsecureSkipVerify: t}\n}": block,
		"func f() {\nconst t = true\nc.InsecureSkipVerify = t\n}":               block,
		set + "const t = true":                                                 block,
		set + "const t bool = !false":                                          block,
		set + "const (\na = true\nt\n)":                                        block,
		set + "const a, t = false, !a":                                         block,
		set + "const t = bool(true)":                                           block,
		set + "type b bool\nconst t = b(true)":                                 block,
		set + "const t = false":                                                nil,
		set + "const t = t":                                                    nil,
		set + "var t = true":                                                   nil, // it may change
		set + "func f() { const t = true }":                                    nil,
		"const t = true\nfunc f(t bool) { c.InsecureSkipVerify = t }":          nil,
		"const t = true\nfunc f() { t := g(); c.InsecureSkipVerify = t }":      nil,
		"func f() { c.InsecureSkipVerify = bool(true) }":                       block,
		config + "(func(tls.ConnectionState) error)(nil)}":                     block,
		config + "((func(tls.ConnectionState) error)((nil)))}":                 block,
		config + "v(nil)}\ntype v func(tls.ConnectionState) error":             block,
		config + "v(nil)}":                                                     flag, // a call
		config + "v(w)}\ntype v func(tls.ConnectionState) error":               flag,
		config + "func(tls.ConnectionState) error { return error(nil) }}":      block,
		config + "v}\nfunc v(tls.ConnectionState) error { return nil }":        block,
		config + "v}\nfunc v(s tls.ConnectionState) error { return check(s) }": flag,
		"func f() { c.InsecureSkipVerify = true; c.VerifyPeerCertificate = (func([][]byte, [][]*x509.Certificate) error)(nil) }": block,
	} {
		require.Equal(t, want, verdicts(t, "a.go", "package a\n"+text), text)
	}
}
