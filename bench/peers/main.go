// The todo service over HTTP by grpc-gateway, as its users set it up: the peer that `bench peers` measures the fleet's gateway beside.
// It checks a token's signature, issuer, audience, times and type, and remembers it for as long as ours does. It has the same JSON for a todo,
// and the same deadline. It writes no log lines, metrics or spans, limits no rates, sets no entity tags and retries nothing.
//
//	peer -listen HOST:PORT -todo HOST:PORT -jwks URL -issuer NAME -audience NAME
package main

import (
	"context"
	"flag"
	"log"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"

	todov1 "flotilla.example/peer/gen/flotilla/todo/v1"
)

const (
	remembered = 60 * time.Second
	leeway     = 30 * time.Second
	mostTokens = 2_000
)

func main() {
	listen := flag.String("listen", "", "address to serve HTTP on")
	todo := flag.String("todo", "", "address of the todo service")
	jwks := flag.String("jwks", "", "address of the issuer's keys")
	issuer := flag.String("issuer", "", "issuer that tokens name")
	audience := flag.String("audience", "", "audience that tokens name")
	flag.Parse()
	log.SetFlags(0)

	connection, err := grpc.NewClient(*todo, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	// The library passes Authorization on by itself.
	mux := runtime.NewServeMux(
		runtime.WithIncomingHeaderMatcher(func(name string) (string, bool) {
			return "idempotency-key", name == "Idempotency-Key"
		}),
		runtime.WithMarshalerOption(runtime.MIMEWildcard, &runtime.JSONPb{
			MarshalOptions: protojson.MarshalOptions{EmitDefaultValues: true},
		}),
	)
	runtime.DefaultContextTimeout = 10 * time.Second
	if err := todov1.RegisterTodoServiceHandler(context.Background(), mux, connection); err != nil {
		log.Fatal(err)
	}
	keys, err := keyfunc.NewDefault([]string{*jwks})
	if err != nil {
		log.Fatal(err)
	}
	parser := jwt.NewParser(
		jwt.WithValidMethods([]string{"EdDSA", "ES256", "RS256"}),
		jwt.WithIssuer(*issuer),
		jwt.WithAudience(*audience),
		jwt.WithExpirationRequired(),
		jwt.WithLeeway(leeway),
	)
	log.Fatal(http.ListenAndServe(*listen, &verified{next: mux, keys: keys, parser: parser, until: map[string]time.Time{}}))
}

type claims struct {
	jwt.RegisteredClaims
	Tenant string `json:"tenant"`
}

// verified lets only callers with a valid token through.
type verified struct {
	next   http.Handler
	keys   keyfunc.Keyfunc
	parser *jwt.Parser

	lock sync.RWMutex
	// until says how long a token need not be verified again.
	until map[string]time.Time
}

func (v *verified) ServeHTTP(writer http.ResponseWriter, request *http.Request) {
	token, _ := strings.CutPrefix(request.Header.Get("Authorization"), "Bearer ")
	v.lock.RLock()
	until := v.until[token]
	v.lock.RUnlock()
	if time.Now().After(until) && !v.verify(token) {
		http.Error(writer, `{"status":401}`, http.StatusUnauthorized)
		return
	}
	v.next.ServeHTTP(writer, request)
}

func (v *verified) verify(text string) bool {
	var named claims
	token, err := v.parser.ParseWithClaims(text, &named, v.keys.Keyfunc)
	if err != nil || named.Tenant == "" || named.Subject == "" || token.Header["typ"] != "at+jwt" {
		return false
	}
	until := time.Now().Add(remembered)
	if expires := named.ExpiresAt.Add(leeway); expires.Before(until) {
		until = expires
	}
	v.lock.Lock()
	defer v.lock.Unlock()
	if len(v.until) >= mostTokens {
		clear(v.until)
	}
	v.until[text] = until
	return true
}
