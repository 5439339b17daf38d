package extract

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/aphoria/internal/source"
)

// verdicts returns the verdict of each observation of TLS verification in text.
func verdicts(t *testing.T, name, text string) []Verdict {
	t.Helper()
	e, err := TLSVerify()
	require.NoError(t, err)
	found, err := e.Extract(t.Context(), source.NewFile(name, []byte(text)), NewModules("p"))
	require.NoError(t, err)
	var vs []Verdict
	for _, o := range found {
		vs = append(vs, o.Verdict)
	}
	return vs
}

func TestTheCallDecidesAboutVerifyFalse(t *testing.T) {
	block, flag := []Verdict{Block}, []Verdict{Flag}
	for text, want := range map[string][]Verdict{
		`requests.get(u.decode("utf-8"), verify=False)`:               block,
		`requests.get(u, headers=jwt.headers(), verify=False)`:        block,
		`requests.get(u, auth=jwt.decode(t, verify=False))`:           nil,
		`x = jwt.headers(); requests.get(u, verify=False)`:            block,
		`def f(): requests.get(u, verify=False)`:                      block,
		`def f(c=requests.get(u, verify=False)): pass`:                block,
		"requests.get(\n    u, # why\n    verify = False,\n)":         block,
		"requests.get(u, verify=\\\n  False)":                         block,
		`requests.Session().get(u, verify=False)`:                     block,
		`self.session.post(u, {"a": [1, (2)]}, verify=False)`:         block,
		`httpx.Client(verify=False)`:                                  block,
		`AsyncClient(base_url=u, verify=False)`:                       block,
		`boto3.client("s3", verify=False)`:                            block,
		`partial(requests.get, verify=False)`:                         block,
		`functools.partial(jwt.decode, verify=False)`:                 nil,
		`session.verify = False`:                                      block,
		`a.b().verify = False`:                                        block,
		`f"{requests.get(u, verify=False)}"`:                          block,
		`f"{x:{w}}" + g("a", requests.get(u, verify=False))`:          block,
		"f'''{a['b']!r:>10} {\n requests.get(u, verify=False)\n}'''":  block,
		`"{requests.get(u, verify=False)}"`:                           nil,
		`f"{{requests.get(u, verify=False)}}"`:                        nil,
		`x = f"{a:'>10}"; requests.get(u, verify=False)`:              block,
		"x = f'''{a:\">10}'''\nrequests.get(u, verify=False)":         block,
		"'''never\nends\nrequests.get(u, verify=False)":               block,
		`self._request("GET", u, verify=False)`:                       block,
		`http_get(u, verify=False)`:                                   block,
		`hmac_check(s, verify=False)`:                                 flag,
		`self.merge(verify=False)`:                                    flag,
		`self.verify = False`:                                         flag,
		`verify = False`:                                              flag,
		`functools.partial(merge, verify=False)`:                      flag,
		"def f(\n    a: int = 1,\n    verify=False,\n):\n    pass":    nil,
		"async def f(a=(1, 2), *, b=[3], verify=False): pass":         nil,
		"class A(B, verify=False): pass":                              nil,
		`f = lambda u, verify=False: u`:                               nil,
		`map(lambda u: requests.get(u, verify=False), us)`:            block,
		`f(lambda verify=False: 1, 2)`:                                nil,
		`if verify == False: pass`:                                    nil,
		`requests.get(u, verify=False_)`:                              nil,
		`requests.get(u, noverify=False)`:                             nil,
		"def f(\n  cert_reqs=ssl.CERT_NONE,\n): pass":                 flag,
		`urllib3.PoolManager(cert_reqs="CERT_NONE")`:                  block,
		`urllib3.PoolManager(note="def f(", cert_reqs='CERT_NONE')`:   block,
		`context.verify_mode = ssl.CERT_NONE # def`:                   block,
		`context.verify_mode = x`:                                     nil,
		`x = ["def", "("]; y = {"z": requests.get(u, verify=False)}`:  block,
		`_create_unverified_context; xssl._create_unverified_context`: nil,
	} {
		require.Equal(t, want, verdicts(t, "a.py", text), text)
	}
}

func TestNoTextAroundHidesJavaScript(t *testing.T) {
	const off = "{rejectUnauthorized: false}"
	one := []Verdict{Block}
	for _, tc := range []struct {
		name, text string
		want       []Verdict
	}{
		{"a.jsx", "x = <p>one ` back-tick</p>; a(" + off + ")", one},
		{"a.tsx", "return <p className='a`'>it's {y} ` <b>`</b></p>;\na(" + off + ")", one},
		{"a.js", "x = <><br/>`{f(`${<i>`</i>}`)}</>; a(" + off + ")", one},
		{"a.jsx", "x = <A f={() => { a(" + off + ") }}>`</A>", one},
		{"a.jsx", "x = <A f={`{`}>{/* ` */}</A>; a(" + off + ")", one},
		{"a.jsx", "x = <p>never write rejectUnauthorized: false</p>", nil},
		{"a.jsx", "x = y ? <A.B c-d='1'/> : <e:f/>\na(" + off + ")", one},
		{"a.tsx", "const f = <T,>(x: T) => `${x}`; a(" + off + ")", one},
		{"a.tsx", "const f = <T extends U>(x: T) => x; a(" + off + ")", one},
		{"a.tsx", "type F = <T>(x: T) => T\nconst s = <p>`</p>\na(" + off + ")", one},
		{"a.ts", "const x = <any>y; const s = '`'; a(" + off + ")", one},
		{"a.js", "if (a < b) { c(`d`) } a(" + off + "); e > f", one},
		{"a.js", "`a ${new Agent(" + off + ")} b`", one},
		{"a.js", "`a ${`b ${`c`} ` + '}'} rejectUnauthorized: false`", nil},
		{"a.js", "`\\${` + a(" + off + ")", one},
		{"a.js", "x = `never ends\na(" + off + ")", one},
		{"a.js", "x = <p>never ends\na(" + off + ")", one},
		{"a.js", "a({rejectUnauthorized:!1})", one},
		{"a.js", "a({['rejectUnauthorized']: false})", one},
		{"a.js", "a({rejectUnauthorized /* why */ : // not\n false})", one},
		{"a.js", "a\u00a0= {\u00a0rejectUnauthorized: false}", one},
	} {
		require.Equal(t, tc.want, verdicts(t, tc.name, tc.text), "%s %s", tc.name, tc.text)
	}
}

func TestValuesThatAreFalseInPythonSwitchVerificationOff(t *testing.T) {
	block, flag := []Verdict{Block}, []Verdict{Flag}
	for text, want := range map[string][]Verdict{
		`requests.get(u, verify=0)`:                         block,
		`requests.get(u, verify=0.0)`:                       block,
		`requests.get(u, verify=0x00)`:                      block,
		`requests.get(u, verify=0_0)`:                       block,
		`requests.get(u, verify=(0))`:                       block,
		`requests.get(u, verify="")`:                        block,
		`requests.get(u, verify='', timeout=3)`:             block,
		"requests.get(u, verify='''''')":                    block,
		`requests.get(u, verify=[])`:                        block,
		"requests.get(u, verify=[\n])":                      block,
		`requests.get(u, verify=())`:                        block,
		`requests.get(u, verify={})`:                        block,
		`requests.get(u, verify=not 1)`:                     block,
		`requests.get(u, verify=not "x")`:                   block,
		`requests.get(u, **{"verify": 0})`:                  block,
		`session.verify = 0`:                                block,
		`session.verify = ""`:                               block,
		`session.verify = None`:                             block,
		`urllib3.PoolManager(cert_reqs=0)`:                  block,
		`context.verify_mode = 0`:                           block,
		`verify = 0`:                                        flag,
		`self.merge(verify=0)`:                              flag,
		`requests.get(u, verify=0 or x)`:                    flag,
		`requests.get(u, verify=None)`:                      nil,
		`requests.get(u, verify=1)`:                         nil,
		`requests.get(u, verify=10)`:                        nil,
		`requests.get(u, verify=0.5)`:                       nil,
		`requests.get(u, verify=not 0)`:                     nil,
		`requests.get(u, verify=not "")`:                    nil,
		`requests.get(u, verify="0")`:                       nil,
		`requests.get(u, verify="False")`:                   nil,
		`requests.get(u, verify="()")`:                      nil,
		`requests.get(u, verify="'")`:                       nil,
		`requests.get(u, verify=[x])`:                       nil,
		`requests.get(u, verify={"a": 0})`:                  nil,
		`requests.get(u, verify="ca.pem")`:                  nil,
		`jwt.decode(t, verify=0)`:                           nil,
		`self.verify = None; verify = ""; self.verify = []`: nil,
		`def f(verify=0): pass`:                             nil,
	} {
		require.Equal(t, want, verdicts(t, "a.py", text), text)
	}
}
