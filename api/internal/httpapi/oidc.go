package httpapi

import (
	"net/http"

	"github.com/google/uuid"

	"s0.run/api/internal/identity"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/sso"
	"s0.run/internal/daemon"
	"s0.run/internal/errdefs"
)

// ListAuthProviders implements GET /auth/providers.
func (a *API) ListAuthProviders(w http.ResponseWriter, r *http.Request) {
	list := []openapi.AuthProvider{{ID: "builtin", Name: "Email and password", Type: openapi.AuthProviderTypeBuiltin}}
	for _, m := range a.cfg.SSO.Methods() {
		list = append(list, openapi.AuthProvider{
			ID: m.ID, Name: m.Name, Type: openapi.AuthProviderTypeOidc, BrowserLoginEnabled: true, DeviceLoginEnabled: m.Device,
		})
	}
	a.answer(w, r, http.StatusOK, openapi.AuthProviderList{Providers: list}, nil)
}

// limitSignInHosts bounds how many sign-ins one address tries: each costs a hash,
// or a row and a provider's time.
func (a *API) limitSignInHosts(w http.ResponseWriter, r *http.Request) error {
	return a.limit(w, a.signInHosts, daemon.Network(entryOf(r).client))
}

// StartOIDCLogin implements GET /auth/oidc/{provider}/login.
func (a *API) StartOIDCLogin(w http.ResponseWriter, r *http.Request, provider string, params openapi.StartOIDCLoginParams) {
	returnURL := value(params.ReturnURL)
	err := a.limitSignInHosts(w, r)
	if err == nil && params.WebLogin != nil && *params.WebLogin != (returnURL != "") {
		err = errdefs.New(errdefs.InvalidArgument, "return_url and web_login=true go together: tokens are never put into a URL")
	}
	var d sso.Departure
	if err == nil {
		d, err = a.cfg.SSO.Depart(r.Context(), provider, returnURL)
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	http.SetCookie(w, d.Cookie)
	redirect(w, d.URL)
}

// FinishOIDCLogin implements GET /auth/oidc/{provider}/callback.
func (a *API) FinishOIDCLogin(w http.ResponseWriter, r *http.Request, provider string, params openapi.FinishOIDCLoginParams) {
	state := value(params.State)
	arrival := sso.Arrival{
		State: state, Code: value(params.Code), Issuer: value(params.Iss), Error: value(params.Error), Reason: value(params.ErrorDescription),
	}
	if c, err := r.Cookie(a.cfg.SSO.CookieName(state)); err == nil {
		arrival.Cookie = c.Value
		http.SetCookie(w, a.cfg.SSO.EndCookie(state))
	}
	w.Header().Set("Referrer-Policy", "no-referrer") // codes are in our URL and in the next
	out, err := a.cfg.SSO.Arrive(r.Context(), provider, arrival)
	if page := out.Page(err); page != "" {
		if err != nil {
			a.logFailure(r, err)
		}
		redirect(w, page)
		return
	}
	a.answerLogin(w, r, out.User, err)
}

// redirect sends a browser elsewhere, without a page for those that don't go.
func redirect(w http.ResponseWriter, url string) {
	w.Header().Set("Location", url)
	w.WriteHeader(http.StatusFound)
}

// answerLogin signs in whom a provider has named.
func (a *API) answerLogin(w http.ResponseWriter, r *http.Request, user uuid.UUID, err error) {
	var s identity.Session
	if err == nil {
		s, err = a.cfg.Identity.SignIn(r.Context(), user)
	}
	a.answer(w, r, http.StatusOK, sessionOut(s), err)
}

// ExchangeLoginCode implements POST /auth/web-login/exchange.
func (a *API) ExchangeLoginCode(w http.ResponseWriter, r *http.Request) {
	var req openapi.ExchangeLoginCodeRequest
	err := decode(w, r, controlBytes, &req, "login_code", "return_url")
	if err == nil {
		err = a.limitSignInHosts(w, r)
	}
	var user uuid.UUID
	if err == nil {
		user, err = a.cfg.SSO.Exchange(r.Context(), req.LoginCode, req.ReturnURL)
	}
	a.answerLogin(w, r, user, err)
}

// StartDeviceLogin implements POST /auth/oidc/{provider}/device/start.
func (a *API) StartDeviceLogin(w http.ResponseWriter, r *http.Request, provider string) {
	err := a.limitSignInHosts(w, r)
	var d sso.DeviceLogin
	if err == nil {
		d, err = a.cfg.SSO.StartDevice(r.Context(), provider)
	}
	out := openapi.DeviceLogin{
		DeviceLoginID: d.ID, UserCode: d.UserCode, VerificationURI: d.URL,
		ExpiresAt: d.Expires.Unix(), IntervalSeconds: int32(d.Interval.Seconds()),
	}
	if d.CompleteURL != "" {
		out.VerificationURIComplete = &d.CompleteURL
	}
	a.answer(w, r, http.StatusOK, out, err)
}

// PollDeviceLogin implements POST /auth/oidc/{provider}/device/poll.
func (a *API) PollDeviceLogin(w http.ResponseWriter, r *http.Request, provider string) {
	if err := a.cfg.SSO.Known(provider); err != nil { // whatever is asked of it
		a.fail(w, r, err)
		return
	}
	var req openapi.PollDeviceLoginRequest
	err := decode(w, r, controlBytes, &req, "device_login_id")
	var state sso.DeviceState
	if err == nil {
		state, err = a.cfg.SSO.PollDevice(r.Context(), provider, req.DeviceLoginID)
	}
	var s identity.Session
	if err == nil && state.Status == sso.Completed {
		s, err = a.cfg.Identity.SignIn(r.Context(), state.User)
	}
	out := openapi.DeviceLoginState{
		Status: openapi.DeviceLoginStateStatus(state.Status), ExpiresAt: new(state.Expires.Unix()), IntervalSeconds: new(int32(state.Interval.Seconds())),
	}
	if state.Status == sso.Completed {
		out.Login = new(sessionOut(s))
	}
	a.answer(w, r, http.StatusOK, out, err)
}
