// Package session turns flags, environment and the configuration file into a
// client that is ready to call: which server, as whom, in which team.
//
// A flag goes before the environment, that before the profile, that before the
// default. The package owns the configuration file while a command runs, renews
// access tokens and never sends a profile's token to another server than the
// one that gave it.
package session

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/config"
)

// DefaultURL is where `make up` serves.
const DefaultURL = "http://127.0.0.1:30080"

// The environment variables, the same in all SDKs.
const (
	EnvToken = "SANDBOX0_TOKEN"
	EnvURL   = "SANDBOX0_BASE_URL"
)

const (
	// metadataTimeout keeps a server that does not know /metadata from holding
	// up what the user asked for.
	metadataTimeout = 5 * time.Second
	// renewBefore is how long before its end an access token is renewed, so that
	// it does not end on its way.
	renewBefore = 30 * time.Second
)

// ErrSignedOut is returned when there is no token for the server.
var ErrSignedOut = errors.New("you are not signed in")

// Options are what the command line says; empty fields say nothing.
type Options struct {
	APIURL     string
	Token      string
	Profile    string
	ConfigPath string // defaults to config.DefaultPath
	Getenv     func(string) string
	UserAgent  string
}

// Session is the resolved configuration of one command.
type Session struct {
	opts       Options
	path       string
	file       *config.File
	profile    *config.Profile
	url        string
	overridden bool // the URL is another than the profile's
}

// Open reads the configuration; nothing is sent yet.
func Open(opts Options) (*Session, error) {
	path := opts.ConfigPath
	if path == "" {
		var err error
		if path, err = config.DefaultPath(); err != nil {
			return nil, err
		}
	}
	file, err := config.Load(path)
	if err != nil {
		return nil, err
	}
	if len(file.Profiles) == 0 && opts.Profile != "" {
		file.CurrentProfile = opts.Profile // the first profile is the current one
	}
	s := &Session{opts: opts, path: path, file: file, profile: file.Profile(opts.Profile)}
	s.url, s.overridden = s.resolveURL()
	return s, nil
}

func (s *Session) resolveURL() (url string, overridden bool) {
	own := first(s.profile.APIURL, DefaultURL)
	chosen := first(s.opts.APIURL, s.opts.Getenv(EnvURL), own)
	return trim(chosen), trim(chosen) != trim(own)
}

// URL is the server's.
func (s *Session) URL() string { return s.url }

// Format is how the user likes results printed; empty if they never said.
func (s *Session) Format() string { return s.file.Output.Format }

// ProfileName is the name of the profile in use.
func (s *Session) ProfileName() string { return first(s.opts.Profile, s.file.ProfileName()) }

// TeamID is the team that the user chose; empty if they never did.
func (s *Session) TeamID() string {
	if s.overridden {
		return ""
	}
	return s.profile.CurrentTeamID
}

// Anonymous is a client without a token.
func (s *Session) Anonymous() (*client.Client, error) { return s.newClient("", "") }

// Client is a client that acts for the user. It renews an access token that is
// about to end.
func (s *Session) Client(ctx context.Context) (*client.Client, error) {
	token, err := s.token(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.checkGateway(ctx); err != nil {
		return nil, err
	}
	team := ""
	if !IsAPIKey(token) { // a key belongs to one team
		team = s.TeamID()
	}
	return s.newClient(token, team)
}

// UserClient is Client for what an API key can't do.
func (s *Session) UserClient(ctx context.Context) (*client.Client, error) {
	if token := first(s.opts.Token, s.opts.Getenv(EnvToken)); IsAPIKey(token) {
		return nil, fmt.Errorf("this needs a signed-in user, and an API key was given: unset %s (or drop --token) and use `s0 auth login`", EnvToken)
	}
	return s.Client(ctx)
}

// IsAPIKey tells API keys from access tokens.
func IsAPIKey(token string) bool { return strings.HasPrefix(token, "s0_") }

func (s *Session) newClient(token, team string) (*client.Client, error) {
	return client.New(client.Config{
		BaseURL: s.url, Token: token, TeamID: team,
		HTTPClient: &http.Client{}, UserAgent: s.opts.UserAgent,
	})
}

// token finds the token to use.
func (s *Session) token(ctx context.Context) (string, error) {
	if t := first(s.opts.Token, s.opts.Getenv(EnvToken)); t != "" {
		return t, nil
	}
	switch {
	case s.profile.Token == "":
		return "", ErrSignedOut
	case s.overridden && s.profile.APIURL != "":
		return "", fmt.Errorf("%w: the profile %q is for %s, not %s", ErrSignedOut, s.ProfileName(), s.profile.APIURL, s.url)
	}
	if err := s.renew(ctx); err != nil {
		return "", err
	}
	return s.profile.ExpandedToken(s.opts.Getenv)
}

// renew exchanges an access token that is about to end for a new one.
func (s *Session) renew(ctx context.Context) error {
	p := s.profile
	if p.RefreshToken == "" || p.ExpiresAt == 0 || time.Until(time.Unix(p.ExpiresAt, 0)) > renewBefore {
		return nil
	}
	anonymous, err := s.Anonymous()
	if err != nil {
		return err
	}
	login, err := anonymous.RefreshToken(ctx, p.RefreshToken)
	if err == nil {
		s.remember(login)
		return s.save()
	}
	var refused *client.APIError
	if !errors.As(err, &refused) || refused.StatusCode != http.StatusUnauthorized {
		return fmt.Errorf("renewing your session: %w", err)
	}
	if s.renewedElsewhere() {
		return nil
	}
	return fmt.Errorf("%w: your session has ended", ErrSignedOut)
}

// renewedElsewhere takes over the tokens that another s0, started at the same
// time, got for the refresh token that we both had.
func (s *Session) renewedElsewhere() bool {
	file, err := config.Load(s.path)
	if err != nil {
		return false
	}
	current := file.Profile(s.opts.Profile)
	if current.RefreshToken == s.profile.RefreshToken || current.Token == "" {
		return false
	}
	s.file, s.profile = file, current
	return true
}

// checkGateway learns how the server wants to be talked to, unless the profile
// knows. A server that does not say is talked to directly.
func (s *Session) checkGateway(ctx context.Context) error {
	mode := s.profile.GatewayMode
	if s.overridden || mode == "" {
		anonymous, err := s.Anonymous()
		if err != nil {
			return err
		}
		if mode, err = gatewayMode(ctx, anonymous); err != nil {
			return err
		}
	}
	if mode == string(client.MetadataGatewayModeGlobal) {
		return fmt.Errorf("%s is the API of several regions, which this s0 can't use: set --api-url to a region's own API", s.url)
	}
	return nil
}

func gatewayMode(ctx context.Context, c *client.Client) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	metadata, err := c.Metadata(ctx)
	var refused *client.APIError
	switch {
	case err == nil:
		return string(metadata.GatewayMode), nil
	case errors.As(err, &refused):
		return string(client.MetadataGatewayModeDirect), nil
	}
	return "", err
}

// SignIn remembers the tokens of a login and makes its team the current one.
func (s *Session) SignIn(ctx context.Context, login *client.Login) error {
	signedIn, err := s.newClient(login.AccessToken, "")
	if err != nil {
		return err
	}
	mode, err := gatewayMode(ctx, signedIn)
	if err != nil {
		return err
	}
	teams, err := signedIn.ListTeams(ctx)
	if err != nil {
		return fmt.Errorf("listing your teams: %w", err)
	}
	s.profile.APIURL, s.profile.GatewayMode = s.url, mode
	s.profile.CurrentTeamID = chooseTeam(login.User, teams.Teams, s.TeamID())
	s.remember(login)
	return s.save()
}

// chooseTeam keeps the team of before if the user still has it, else takes the
// user's default, else the first.
func chooseTeam(user client.User, teams []client.Team, before string) string {
	if len(teams) == 0 {
		return ""
	}
	chosen := teams[0].ID
	for _, t := range teams {
		if t.ID == before {
			return before
		}
		if user.DefaultTeamID != nil && t.ID == *user.DefaultTeamID {
			chosen = t.ID
		}
	}
	return chosen
}

// SignOut revokes the profile's tokens and forgets them. They are forgotten
// also when the server can't be told.
func (s *Session) SignOut(ctx context.Context) error {
	access, refresh, server := s.profile.Token, s.profile.RefreshToken, first(s.profile.APIURL, DefaultURL)
	if access == "" {
		return ErrSignedOut
	}
	s.profile.Token, s.profile.RefreshToken, s.profile.ExpiresAt, s.profile.CurrentTeamID = "", "", 0, ""
	if err := s.save(); err != nil || IsAPIKey(access) || refresh == "" {
		return err
	}
	c, err := client.New(client.Config{BaseURL: server, Token: access, UserAgent: s.opts.UserAgent})
	if err != nil {
		return err
	}
	if err := c.Logout(ctx, refresh); err != nil {
		return fmt.Errorf("signed out here, but %s could not be told: %w", server, err)
	}
	return nil
}

// UseTeam makes a team the current one.
func (s *Session) UseTeam(id string) error {
	if s.overridden {
		return fmt.Errorf("the profile %q is for %s, not %s: sign in there first, or choose another with --profile", s.ProfileName(), first(s.profile.APIURL, DefaultURL), s.url)
	}
	s.profile.CurrentTeamID = id
	return s.save()
}

func (s *Session) remember(login *client.Login) {
	s.profile.Token, s.profile.RefreshToken, s.profile.ExpiresAt = login.AccessToken, login.RefreshToken, login.ExpiresAt
}

func (s *Session) save() error { return s.file.Save(s.path) }

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func trim(url string) string { return strings.TrimRight(url, "/") }
