package keys

import "fmt"

// Role is a key's set of rights.
type Role string

// The roles. Each is a name that operators write into requests and files.
const (
	ReadOnly   Role = "read_only"
	WriteAgent Role = "write_agent"
	Backup     Role = "backup"
	Admin      Role = "admin"
)

// Roles lists every role, weakest first.
func Roles() []Role { return []Role{ReadOnly, WriteAgent, Backup, Admin} }

// ParseRole reads the name of a role.
func ParseRole(text string) (Role, error) {
	for _, r := range Roles() {
		if string(r) == text {
			return r, nil
		}
	}
	return "", fmt.Errorf("a role is one of read_only, write_agent, backup and admin, not %q", text)
}

// Class groups routes that ask for the same right.
type Class uint8

// The classes of routes.
const (
	// Public routes need no key: health, metrics, the API's description.
	Public Class = iota
	// Identity routes answer any key about itself.
	Identity
	// Read returns records of the key's project and of the shared space.
	Read
	// Write adds records to the key's project.
	Write
	// Observe shows the state of the whole cluster.
	Observe
	// BackupRestore copies records and key hashes out or in.
	BackupRestore
	// Administer changes keys and members.
	Administer
)

// Classes lists every class that needs a key.
func Classes() []Class {
	return []Class{Identity, Read, Write, Observe, BackupRestore, Administer}
}

func (c Class) String() string {
	switch c {
	case Public:
		return "public"
	case Identity:
		return "identity"
	case Read:
		return "read"
	case Write:
		return "write"
	case Observe:
		return "observe"
	case BackupRestore:
		return "backup"
	case Administer:
		return "administer"
	}
	return fmt.Sprintf("class(%d)", uint8(c))
}

// rights is the matrix of roles and classes. docs/api-keys.md shows it with the
// routes; a test walks all of it.
var rights = map[Role][]Class{
	ReadOnly:   {Identity, Read, Observe},
	WriteAgent: {Identity, Read, Write, Observe},
	Backup:     {Identity, Observe, BackupRestore},
	Admin:      {Identity, Read, Write, Observe, BackupRestore, Administer},
}

// Allows reports whether the role may use routes of the class.
func (r Role) Allows(class Class) bool {
	if class == Public {
		return true
	}
	for _, c := range rights[r] {
		if c == class {
			return true
		}
	}
	return false
}
