package identity

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"net/mail"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"s0.run/api/internal/audit"
	"s0.run/api/internal/auth"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

const (
	maxNameBytes  = 100
	maxEmailBytes = 254 // RFC 5321
	maxSlugBytes  = 63
)

// Registration is what somebody says who signs up.
type Registration struct {
	Email, Password, Name string
}

// Register makes a user, with a team of his own, and signs him in. Nobody has
// confirmed that the email is his.
func (s *Service) Register(ctx context.Context, r Registration) (Session, error) {
	if !s.cfg.AllowRegistration {
		return Session{}, errdefs.New(errdefs.PermissionDenied, "this server lets nobody sign up: ask its operator for an account")
	}
	if err := checkRegistration(r); err != nil {
		return Session{}, err
	}
	hash, err := s.cfg.Hasher.Hash(ctx, r.Password)
	if err != nil {
		return Session{}, err
	}
	team := r.Name + "'s team"
	if len(team) > maxNameBytes {
		team = r.Name
	}
	user, err := s.cfg.Store.CreateUser(ctx, store.NewUser{
		Email: r.Email, Name: r.Name, PasswordHash: hash, TeamName: team, TeamSlug: newSlug(r.Name), RegionID: s.cfg.RegionID,
	})
	if err != nil {
		return Session{}, err
	}
	audit.By(ctx, user.ID)
	return s.begin(ctx, user)
}

func checkRegistration(r Registration) error {
	if addr, err := mail.ParseAddress(r.Email); err != nil || addr.Address != r.Email || len(r.Email) > maxEmailBytes {
		return errdefs.New(errdefs.InvalidArgument, "email is invalid")
	}
	if err := CheckName("name", r.Name); err != nil {
		return err
	}
	return auth.CheckPassword(r.Password)
}

// CheckName refuses what can't be shown as a name (A18).
func CheckName(what, name string) error {
	if strings.TrimSpace(name) == "" || len(name) > maxNameBytes || !utf8.ValidString(name) || strings.ContainsFunc(name, unprintable) {
		return errdefs.New(errdefs.InvalidArgument, "%s must be printable and have 1 to %d bytes", what, maxNameBytes)
	}
	return nil
}

// unprintable reports characters that a terminal obeys or that turn text around.
func unprintable(c rune) bool { return unicode.IsControl(c) || unicode.Is(unicode.Cf, c) }

var slugPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

// CheckSlug refuses what is no DNS label.
func CheckSlug(slug string) error {
	if len(slug) > maxSlugBytes || !slugPattern.MatchString(slug) {
		return errdefs.New(errdefs.InvalidArgument, "slug must have 1 to %d lower-case letters, digits and inner hyphens", maxSlugBytes)
	}
	return nil
}

var notInSlug = regexp.MustCompile(`[^a-z0-9]+`)

// newSlug makes a slug of a name that no other team has.
func newSlug(name string) string {
	b := make([]byte, 4)
	rand.Read(b) // never fails
	words := strings.Trim(notInSlug.ReplaceAllString(strings.ToLower(name), "-"), "-")
	words = strings.TrimRight(words[:min(len(words), maxSlugBytes/2)], "-")
	if words == "" {
		words = "team"
	}
	return words + "-" + hex.EncodeToString(b)
}

// CreateTeam makes a team that the user owns. An empty slug stands for one made of
// the name.
func (s *Service) CreateTeam(ctx context.Context, t store.Team) (store.Team, error) {
	if err := CheckName("name", t.Name); err != nil {
		return store.Team{}, err
	}
	if t.Slug == "" {
		t.Slug = newSlug(t.Name)
	}
	if err := CheckSlug(t.Slug); err != nil {
		return store.Team{}, err
	}
	t.HomeRegionID = s.cfg.RegionID
	return s.cfg.Store.CreateTeam(ctx, t)
}

// CheckRegion refuses a region that is not this server's. None is fine.
func (s *Service) CheckRegion(region string) error {
	if region != "" && region != s.cfg.RegionID {
		return errdefs.New(errdefs.InvalidArgument, "home_region_id: this server has the region %q alone", s.cfg.RegionID)
	}
	return nil
}
