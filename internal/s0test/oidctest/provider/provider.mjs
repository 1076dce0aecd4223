// A real OpenID provider for tests: panva's certified oidc-provider with its own
// pages, and the accounts and clients that its first argument, JSON, names. It
// prints its issuer when it serves, and ends when its standard input does.
import { createServer } from 'node:http'
import { Provider } from 'oidc-provider'

const { accounts, clients, port = 0 } = JSON.parse(process.argv[2])

const server = createServer()
await new Promise((resolve) => server.listen(port, '127.0.0.1', resolve))
const issuer = `http://127.0.0.1:${server.address().port}`

const provider = new Provider(issuer, {
  clients,
  claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name'] },
  // An account is what the test says of the login that was typed.
  findAccount: (_ctx, id) => ({ accountId: id, claims: () => ({ ...accounts[id], sub: id }) }),
  features: { deviceFlow: { enabled: true }, userinfo: { enabled: true }, devInteractions: { enabled: true } },
  pkce: { required: () => true, methods: ['S256'] },
  cookies: { keys: ['test'] },
  ttl: { DeviceCode: 600, Interaction: 600, Grant: 600, Session: 600, AccessToken: 600, IdToken: 600 },
})
server.on('request', provider.callback())
process.stdin.on('end', () => process.exit(0)).resume()
console.log(issuer)
