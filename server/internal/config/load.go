package config

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/stemedb/stemedb/internal/spelling"
)

// maxFile bounds a file that a setting names.
const maxFile = 64 << 10

// Source is where settings come from besides flags. The zero value is the
// process's environment and file system.
type Source struct {
	Environ  []string // "NAME=value"; nil: os.Environ()
	ReadFile func(name string) ([]byte, error)
	Hostname func() (string, error)
}

func (s Source) withDefaults() Source {
	if s.Environ == nil {
		s.Environ = os.Environ()
	}
	if s.ReadFile == nil {
		s.ReadFile = os.ReadFile
	}
	if s.Hostname == nil {
		s.Hostname = os.Hostname
	}
	return s
}

// Problem is one fault of the configuration.
type Problem struct {
	Setting string // the variable's or the flag's name
	Err     error
}

func (p *Problem) Error() string { return p.Setting + ": " + p.Err.Error() }
func (p *Problem) Unwrap() error { return p.Err }

// RegisterFlags adds a flag for every setting. Usage returns help that is
// grouped and names the variables.
func RegisterFlags(fs *pflag.FlagSet) {
	fs.SortFlags = false
	for _, s := range table() {
		if !s.secret {
			f := fs.VarPF(&flagValue{text: s.preset, kind: s.value}, s.flag(), "", s.help)
			if s.boolean {
				f.NoOptDefVal = "true"
			}
		}
		if s.file {
			fs.VarP(&flagValue{kind: "file"}, s.fileFlag(), "", s.help+", read from a file")
		}
	}
}

// flagValue holds a flag's text. Only Load interprets it.
type flagValue struct{ text, kind string }

func (v *flagValue) String() string     { return v.text }
func (v *flagValue) Set(t string) error { v.text = t; return nil }
func (v *flagValue) Type() string       { return v.kind }

// Load reads flags, then environment, then files, and checks the result. A flag
// wins over a variable; an empty variable counts as unset. The error joins
// every *Problem found.
func Load(flags *pflag.FlagSet, source Source) (*Config, error) {
	source = source.withDefaults()
	env, problems := environment(source.Environ)
	c := &Config{}
	for _, s := range table() {
		from, value, err := s.lookup(flags, env, source)
		if err == nil && value != "" {
			err = s.set(c, value)
		}
		if err != nil {
			problems = append(problems, &Problem{Setting: from, Err: err})
		}
	}
	problems = append(problems, c.complete(source)...)
	return c, errors.Join(problems...)
}

// environment picks this program's variables and refuses those it does not know.
func environment(environ []string) (map[string]string, []error) {
	known := map[string]bool{}
	for _, n := range clientNames() {
		known[n] = true
	}
	for _, s := range table() {
		known[s.env()] = true
		if s.file {
			known[s.fileEnv()] = true
		}
	}
	names := make([]string, 0, len(known)) // suggestions; without the clients' variables
	for n := range known {
		if !slices.Contains(clientNames(), n) {
			names = append(names, n)
		}
	}
	slices.Sort(names)

	env := map[string]string{}
	var problems []error
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		switch {
		case !strings.HasPrefix(name, Prefix):
		case known[name]:
			env[name] = value
		case fromKubernetes(name, value):
		default:
			problems = append(problems, &Problem{Setting: name, Err: fmt.Errorf(
				"no such setting; the nearest is %s: correct the name or remove it", spelling.Nearest(name, names))})
		}
	}
	return env, problems
}

// fromKubernetes reports whether the kubelet set the variable for a Service
// whose name begins with "stemedb" (a service link), rather than a person.
func fromKubernetes(name, value string) bool {
	if strings.HasPrefix(name, Prefix+"PORT") || strings.HasPrefix(name, Prefix+"SERVICE_") {
		return true
	}
	if strings.HasSuffix(name, "_SERVICE_HOST") || strings.Contains(name, "_SERVICE_PORT") {
		return true
	}
	i := strings.LastIndex(name, "_PORT")
	if i < 0 {
		return false
	}
	// STEMEDB_X_PORT=tcp://…, STEMEDB_X_PORT_80_TCP[_PROTO|_PORT|_ADDR]=…
	for _, protocol := range []string{"TCP", "UDP", "SCTP"} {
		if strings.HasPrefix(value, strings.ToLower(protocol)+"://") || strings.Contains(name, "_"+protocol+"_") {
			return true
		}
	}
	return false
}

// lookup finds the text of a setting and the name to use in messages about it.
func (s *setting) lookup(flags *pflag.FlagSet, env map[string]string, source Source) (from, value string, err error) {
	if flags != nil {
		direct, file := changed(flags, s.flag()), changed(flags, s.fileFlag())
		switch {
		case direct != nil && file != nil:
			return "--" + s.flag(), "", fmt.Errorf("--%s is set too; keep one of the two", s.fileFlag())
		case direct != nil:
			if direct.Value.String() == "" && !s.boolean {
				return "--" + s.flag(), "", errors.New("is empty; give a value or leave the flag out")
			}
			return "--" + s.flag(), direct.Value.String(), nil
		case file != nil:
			value, err = readSetting(source, file.Value.String())
			return "--" + s.fileFlag(), value, err
		}
	}
	direct, file := env[s.env()], env[s.fileEnv()]
	switch {
	case direct != "" && file != "":
		return s.env(), "", fmt.Errorf("%s is set too; keep one of the two", s.fileEnv())
	case file != "":
		value, err = readSetting(source, file)
		return s.fileEnv(), value, err
	case direct != "":
		return s.env(), direct, nil
	}
	return s.env(), s.preset, nil
}

func changed(flags *pflag.FlagSet, name string) *pflag.Flag {
	if f := flags.Lookup(name); f != nil && f.Changed {
		return f
	}
	return nil
}

func readSetting(source Source, name string) (string, error) {
	b, err := source.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("read the file: %w; check that it is mounted and readable", err)
	}
	if len(b) > maxFile {
		return "", fmt.Errorf("the file %s has %d bytes, at most %d are read", name, len(b), maxFile)
	}
	value := strings.TrimSpace(string(b))
	if value == "" {
		return "", fmt.Errorf("the file %s is empty; write the value into it", name)
	}
	return value, nil
}

// complete sets the defaults that depend on other settings and validates
// combinations of settings.
func (c *Config) complete(source Source) (problems []error) {
	wrong := func(name, format string, args ...any) {
		problems = append(problems, &Problem{Setting: Prefix + name, Err: fmt.Errorf(format, args...)})
	}
	if c.NodeName == "" {
		name, err := source.Hostname()
		short, _, _ := strings.Cut(strings.ToLower(name), ".")
		if err == nil {
			err = nodeName(c, short)
		}
		if err != nil || short == "" {
			wrong("NODE_NAME", "not set and the host's name cannot be used: %v; set it", err)
		}
	}
	if c.AdvertiseAddr == "" {
		c.AdvertiseAddr = c.NodeName
		if c.Single() {
			c.AdvertiseAddr = "localhost"
		}
	}
	for _, dir := range []struct{ name, value string }{{"WAL_DIR", c.WALDir}, {"DB_DIR", c.DBDir}} {
		if dir.value == "" {
			wrong(dir.name, "not set; name a folder on a durable volume, or use --%s", strings.ToLower(strings.ReplaceAll(dir.name, "_", "-")))
		}
	}
	if c.WALDir != "" && c.DBDir != "" && sameFolder(c.WALDir, c.DBDir) {
		wrong("DB_DIR", "%s is the folder of STEMEDB_WAL_DIR, %s; give each its own", c.DBDir, c.WALDir)
	}
	if !c.Single() && len(c.ClusterSecrets) == 0 {
		wrong("CLUSTER_SECRET", "not set, but STEMEDB_CLUSTER_JOIN is; members need a common secret, for example from \"openssl rand -hex 32\"")
	}
	if (c.TLSCertPath == "") != (c.TLSKeyPath == "") {
		wrong("TLS_CERT_PATH", "and STEMEDB_TLS_KEY_PATH belong together; set both or neither")
	}
	if given := count(c.PeerTLSCertPath, c.PeerTLSKeyPath, c.PeerTLSCAPath); given != 0 && given != 3 {
		wrong("PEER_TLS_CERT_PATH", "STEMEDB_PEER_TLS_KEY_PATH and STEMEDB_PEER_TLS_CA_PATH belong together; set all three or none")
	}
	if c.AuthEnabled && c.UnsafeSkipSignatures {
		wrong("UNSAFE_SKIP_SIGNATURES", "is refused together with STEMEDB_AUTH_ENABLED: records of unknown origin would carry a project's name; remove one of the two")
	}
	problems = append(problems, c.checkPorts()...)
	return problems
}

// checkPorts refuses two listeners on one address. Port 0 is any free one.
func (c *Config) checkPorts() (problems []error) {
	seen := map[string]string{}
	for _, l := range []struct{ name, addr string }{
		{"BIND_ADDR", c.BindAddr},
		{"GATEWAY_ADDR", c.GatewayAddr},
		{"REPLICATION_ADDR", c.ReplicationAddr},
		{"GOSSIP_ADDR", c.GossipAddr},
	} {
		if l.addr == "" || strings.HasSuffix(l.addr, ":0") {
			continue
		}
		if other, taken := seen[l.addr]; taken {
			problems = append(problems, &Problem{Setting: Prefix + l.name, Err: fmt.Errorf("%s is the address of %s too; give each its own", l.addr, other)})
		}
		seen[l.addr] = Prefix + l.name
	}
	return problems
}

func count(values ...string) (n int) {
	for _, v := range values {
		if v != "" {
			n++
		}
	}
	return n
}
