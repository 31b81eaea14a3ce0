//! The identity service's rows of the permission matrix: one for each RPC that is not public, and one for each thing that the service does by
//! itself.

use authz::{Permission, Role};
use contracts::events::identity::SERVICE;

use Role::{Admin, Billing, Member, Owner, Viewer};

/// Reads.
const READ: &str = "identity:read";
/// Writes.
const WRITE: &str = "identity:write";

const fn everybody(action: &'static str) -> Permission {
    Permission { action, scope: READ, roles: &[Owner, Admin, Billing, Member, Viewer], services: &[] }
}

const fn reads(action: &'static str) -> Permission {
    Permission { action, scope: READ, roles: &[Owner, Admin], services: &[] }
}

const fn writes(action: &'static str) -> Permission {
    Permission { action, scope: WRITE, roles: &[Owner, Admin], services: &[] }
}

const fn by_itself(action: &'static str) -> Permission {
    Permission { action, scope: WRITE, roles: &[], services: &[SERVICE] }
}

/// Reads what is known of the tenant.
pub const GET_TENANT: Permission = everybody("identity.tenant.get");
/// Changes it.
pub const UPDATE_TENANT: Permission = writes("identity.tenant.update");
/// Asks who the caller is.
pub const GET_ME: Permission = everybody("identity.me.get");
/// Reads who did what to access.
pub const LIST_AUDIT_ENTRIES: Permission = reads("identity.audit.list");
/// Reads one member.
pub const GET_MEMBER: Permission = everybody("identity.member.get");
/// Lists members.
pub const LIST_MEMBERS: Permission = everybody("identity.member.list");
/// Gives a member another role.
pub const UPDATE_MEMBER: Permission = writes("identity.member.update");
/// Takes a member out; everybody may leave.
pub const DELETE_MEMBER: Permission = Permission { scope: WRITE, ..everybody("identity.member.delete") };
/// Invites.
pub const CREATE_INVITATION: Permission = writes("identity.invitation.create");
/// Reads one invitation: a caller who may not gets NOT_FOUND.
pub const GET_INVITATION: Permission = reads("identity.invitation.get");
/// Lists invitations.
pub const LIST_INVITATIONS: Permission = reads("identity.invitation.list");
/// Withdraws an invitation.
pub const DELETE_INVITATION: Permission = writes("identity.invitation.delete");
/// Puts members together.
pub const CREATE_GROUP: Permission = writes("identity.group.create");
/// Reads one group.
pub const GET_GROUP: Permission = everybody("identity.group.get");
/// Lists groups.
pub const LIST_GROUPS: Permission = everybody("identity.group.list");
/// Changes one.
pub const UPDATE_GROUP: Permission = writes("identity.group.update");
/// Deletes one.
pub const DELETE_GROUP: Permission = writes("identity.group.delete");
/// Lets a program in.
pub const CREATE_SERVICE_ACCOUNT: Permission = writes("identity.service_account.create");
/// Reads one program: a caller who may not gets NOT_FOUND.
pub const GET_SERVICE_ACCOUNT: Permission = reads("identity.service_account.get");
/// Lists programs.
pub const LIST_SERVICE_ACCOUNTS: Permission = reads("identity.service_account.list");
/// Changes one.
pub const UPDATE_SERVICE_ACCOUNT: Permission = writes("identity.service_account.update");
/// Lets one in no more.
pub const DELETE_SERVICE_ACCOUNT: Permission = writes("identity.service_account.delete");
/// Makes a key.
pub const CREATE_API_KEY: Permission = writes("identity.api_key.create");
/// Reads one key: a caller who may not gets NOT_FOUND.
pub const GET_API_KEY: Permission = reads("identity.api_key.get");
/// Lists keys.
pub const LIST_API_KEYS: Permission = reads("identity.api_key.list");
/// Replaces a key.
pub const ROTATE_API_KEY: Permission = writes("identity.api_key.rotate");
/// Revokes a key.
pub const DELETE_API_KEY: Permission = writes("identity.api_key.delete");

/// Reads what is known of a tenant, and its open invitations, as an operator requested.
pub const SEE_TENANT: Permission = Permission { scope: READ, ..by_itself("identity.tenant.see") };
/// Suspends a tenant, or resumes it, as an operator requested.
pub const SET_TENANT_STATUS: Permission = by_itself("identity.tenant.set_status");
/// Publishes again who a tenant's members are, as an operator requested.
pub const REPUBLISH_TENANT: Permission = by_itself("identity.tenant.republish");
/// Ends what a tenant demands of a sign-in, as an operator requested.
pub const END_STEP_UP: Permission = by_itself("identity.tenant.end_step_up");
/// Makes a tenant that other services know already, and its first owner, as an operator requested.
pub const ADOPT_TENANT: Permission = by_itself("identity.tenant.adopt");
/// Makes a person a member, on a developer's machine.
pub const ADMIT_MEMBER: Permission = by_itself("identity.member.admit");
/// Erases what is known of a tenant, or removes a person from it, as an operator requested.
pub const ERASE_TENANT: Permission = by_itself("identity.tenant.erase");
/// The same for a member.
pub const ERASE_MEMBER: Permission = by_itself("identity.member.erase");
/// The same for an invitation.
pub const ERASE_INVITATION: Permission = by_itself("identity.invitation.erase");
/// Erases a group, or removes a person from what is known of it.
pub const ERASE_GROUP: Permission = by_itself("identity.group.erase");
/// Erases a program, or removes a person from what is known of it.
pub const ERASE_SERVICE_ACCOUNT: Permission = by_itself("identity.service_account.erase");
/// Erases a key, or removes a person from it.
pub const ERASE_API_KEY: Permission = by_itself("identity.api_key.erase");

/// The row of each RPC that is not public, by its name.
pub const MATRIX: [(&str, &Permission); 27] = [
    ("GetTenant", &GET_TENANT),
    ("UpdateTenant", &UPDATE_TENANT),
    ("GetMe", &GET_ME),
    ("ListAuditEntries", &LIST_AUDIT_ENTRIES),
    ("GetMember", &GET_MEMBER),
    ("ListMembers", &LIST_MEMBERS),
    ("UpdateMember", &UPDATE_MEMBER),
    ("DeleteMember", &DELETE_MEMBER),
    ("CreateInvitation", &CREATE_INVITATION),
    ("GetInvitation", &GET_INVITATION),
    ("ListInvitations", &LIST_INVITATIONS),
    ("DeleteInvitation", &DELETE_INVITATION),
    ("CreateGroup", &CREATE_GROUP),
    ("GetGroup", &GET_GROUP),
    ("ListGroups", &LIST_GROUPS),
    ("UpdateGroup", &UPDATE_GROUP),
    ("DeleteGroup", &DELETE_GROUP),
    ("CreateServiceAccount", &CREATE_SERVICE_ACCOUNT),
    ("GetServiceAccount", &GET_SERVICE_ACCOUNT),
    ("ListServiceAccounts", &LIST_SERVICE_ACCOUNTS),
    ("UpdateServiceAccount", &UPDATE_SERVICE_ACCOUNT),
    ("DeleteServiceAccount", &DELETE_SERVICE_ACCOUNT),
    ("CreateApiKey", &CREATE_API_KEY),
    ("GetApiKey", &GET_API_KEY),
    ("ListApiKeys", &LIST_API_KEYS),
    ("RotateApiKey", &ROTATE_API_KEY),
    ("DeleteApiKey", &DELETE_API_KEY),
];

/// The rows of what the service does by itself, by the command.
pub const BY_ITSELF: [(&str, &Permission); 12] = [
    ("erase_tenant", &ERASE_TENANT),
    ("erase_member", &ERASE_MEMBER),
    ("erase_invitation", &ERASE_INVITATION),
    ("erase_group", &ERASE_GROUP),
    ("erase_service_account", &ERASE_SERVICE_ACCOUNT),
    ("erase_api_key", &ERASE_API_KEY),
    ("see", &SEE_TENANT),
    ("set_status", &SET_TENANT_STATUS),
    ("republish", &REPUBLISH_TENANT),
    ("end_step_up", &END_STEP_UP),
    ("adopt", &ADOPT_TENANT),
    ("admit", &ADMIT_MEMBER),
];
